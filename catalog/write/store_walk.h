// StoreWalk: every record of the catalog, parsed once and linked by index: what prune counts with, and what usage
// records are made from, or checked against by verify (layer: catalog/write; private). A snapshot; immutable after
// loading. Fails when a single record cannot be parsed.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/decode/frame.h"
#include "codec/support/job_control.h"

namespace modelstore {

class StoreWalk {
 public:
  static constexpr uint32_t kMissing = UINT32_MAX;  // an index of what a record refers to and the store lacks

  struct Tensor {
    TensorId id;
    Encoding encoding = Encoding::kRaw;
    uint64_t bytes = 0;
    uint64_t coded_bytes = 0;
    uint64_t cost = 0;  // TensorCost
    PushId push = 0;
    uint8_t depth = 0;  // larger than that of each of its bases and parts
    uint32_t first_block = 0, block_count = 0;
    bool has_sketch = false;
    std::vector<uint32_t> bases;  // distinct
    std::vector<uint32_t> parts;  // of a compact tensor: what it consists of, distinct
  };
  struct FileExtent {
    uint32_t tensor = kMissing;  // also for literals
    bool is_literal = false;
    bool is_part = false;  // of the tensor
    bool is_named = false;
    uint64_t bytes = 0;
  };
  struct File {
    Sha256Digest sha256{};
    FileKind kind = FileKind::kContent;
    uint64_t bytes = 0;
    uint64_t cost = 0;
    std::vector<FileExtent> extents;
  };
  struct Model {
    ModelRecord record;
    uint64_t cost = 0;
    std::vector<uint32_t> files;  // as record.files
  };
  // What a set of models needs, directly or as a base.
  struct Reachable {
    std::vector<char> tensors, files;
  };

  // `store`: a snapshot, or the store itself while nothing changes it. Errors: Corruption, Unsupported, Io.
  // `job`: to be cancelled by, if given (Cancelled).
  static Result<StoreWalk> Load(const KvReader& store, const JobControl* job = nullptr);

  const std::vector<Model>& models() const { return models_; }  // sorted by name
  const std::vector<File>& files() const { return files_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  // kMissing when there is none.
  uint32_t FindTensor(const TensorId& id) const;
  uint32_t FindModel(std::string_view name) const;

  // What its usage record says.
  UsageRecord UsageOf(const File& file) const;

  // Of all models but `without` (an index; kMissing: of all), and of `pinned`.
  Reachable Mark(uint32_t without = kMissing, const std::vector<TensorId>& pinned = {}) const;
  uint64_t Cost(const Reachable& reachable) const;  // without the models' own records
  uint64_t TotalCost() const;

 private:
  struct IdHash {
    size_t operator()(const TensorId& id) const { return id.hash.low ^ id.ordinal; }
  };
  Status LoadTensors(const KvReader& store, const JobControl* job);
  Status LoadFiles(const KvReader& store, const JobControl* job);
  Status LoadModels(const KvReader& store);

  std::vector<Model> models_;
  std::vector<File> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<TensorId, uint32_t, IdHash> tensor_index_;
  std::map<Sha256Digest, uint32_t> file_index_;
};

}  // namespace modelstore
