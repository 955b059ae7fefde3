// StoreUsage: what the models of a store hold and what it costs, without a look at any tensor's record (layer:
// catalog/write; private). Put together from usage records (docs/format.md, "Usage"); where a store lacks them or
// has some that this build cannot parse, because another build wrote it, from a walk over all records. Both say the
// same.
//
// A snapshot; immutable after loading. What models need consists of their records, their files, the tensors of those,
// and the bases that those tensors need although no model lists them any more (a finetune keeps what it was stored
// against when its base is updated).
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/schema/records.h"
#include "catalog/write/store_walk.h"

namespace modelstore {

class StoreUsage {
 public:
  static constexpr uint32_t kMissing = UINT32_MAX;

  struct HeldTensor {
    uint32_t tensor = 0;
    uint8_t encoding = 0;
    bool is_named = false;
    bool in_parts = false;
    uint64_t bytes = 0;
  };
  struct File {
    FileKind kind = FileKind::kContent;
    uint64_t cost_bytes = 0;
    uint64_t bytes = 0;  // of which `literal_bytes` are literals and `repeated_bytes` its own tensors again
    uint64_t literal_bytes = 0, repeated_bytes = 0;
    size_t first_tensor = 0, end_tensor = 0, first_base = 0, end_base = 0;
  };
  struct Model {
    ModelRecord record;
    uint64_t cost_bytes = 0;      // of its own record
    std::vector<uint32_t> files;  // as record.files; kMissing for what the store lacks
  };

  // `store`: a snapshot, or the store itself while the caller holds publish_mutex(). Errors: Corruption, Unsupported,
  // Io.
  static Result<StoreUsage> Load(const KvReader& store);
  // The same from all records.
  static Result<StoreUsage> FromWalk(const StoreWalk& walk);

  const std::vector<Model>& models() const { return models_; }  // sorted by name
  // Each distinct file that a model holds.
  const std::vector<File>& files() const { return files_; }
  std::span<const HeldTensor> TensorsOf(const File& file) const {
    return std::span(held_).subspan(file.first_tensor, file.end_tensor - file.first_tensor);
  }
  // What its tensors need and it does not hold.
  std::span<const uint32_t> BasesOf(const File& file) const {
    return std::span(bases_).subspan(file.first_base, file.end_base - file.first_base);
  }
  // Of each tensor that a model needs.
  const std::vector<uint64_t>& tensor_costs() const { return tensor_costs_; }
  uint32_t FindModel(std::string_view name) const;
  uint32_t FindTensor(const TensorId& id) const { return FindShortId(ShortTensorId(id)); }
  uint32_t FindShortId(uint64_t id) const { return index_.Find(id); }
  // Files, tensors and bases that models need.
  uint64_t needed_bytes() const { return needed_bytes_; }
  // Of all tensors and files.
  uint64_t total_bytes() const { return total_bytes_; }

 private:
  // Short tensor ids to indices: open addressing, a power of two of slots.
  class Index {
   public:
    void Prefetch(uint64_t id) const { __builtin_prefetch(&slots_[Slot(id)]); }
    // Room for `more` ids besides those that are there.
    void Reserve(size_t more);
    // The index of `id`, which is `next` when it is new.
    uint32_t FindOrAdd(uint64_t id, uint32_t next);
    uint32_t Find(uint64_t id) const;

   private:
    struct Entry {
      uint64_t id = 0;
      uint32_t index = kMissing;
    };
    size_t Slot(uint64_t id) const { return (id * 0x9E3779B97F4A7C15ull) >> shift_; }
    std::vector<Entry> slots_ = std::vector<Entry>(16);
    unsigned shift_ = 60;
    size_t used_ = 0;
  };

  void AddModel(ModelRecord record, uint64_t cost_bytes);
  // When a model holds it.
  void AddFile(const Sha256Digest& sha256, const UsageRecord& usage);
  // After all models and files: the models' files by index.
  void LinkFiles();
  uint32_t AddTensor(uint64_t id, uint64_t cost_bytes);

  std::vector<Model> models_;
  std::map<Sha256Digest, uint32_t> file_index_;  // of the files that models hold; kMissing until it was added
  std::vector<File> files_;
  std::vector<HeldTensor> held_;
  std::vector<uint32_t> bases_;
  std::vector<uint64_t> tensor_costs_;
  Index index_;
  uint64_t needed_bytes_ = 0, total_bytes_ = 0;
};

// Whether records could not be read or understood: what needs them for figures or hints only can go on without.
bool IsDamage(const Status& status);

// Adds the usage records of the files that `batch` publishes, and the totals, to it. Call when all records of tensors
// and files are in the batch, with publish_mutex() held; `meta`: the catalog record as the batch writes it. `replaced`:
// those of the tensors in the batch that are stored already and get another record; files that need them get their
// usage records anew. A store that an older build wrote gets the records of all its files first, in a batch of their
// own. A failure leaves `batch` as it was. Errors: Corruption, Unsupported, NoSpace, Io.
Status AddUsage(KvStore& store, const CatalogMeta& meta, std::span<const TensorId> replaced, WriteBatch* batch);

// The usage record of a stored file: the one that is kept, else made from the file's record. Errors: NotFound,
// Corruption, Unsupported, Io.
Result<UsageRecord> FindUsage(const KvReader& store, const Sha256Digest& sha256);

// Whether every model in the store was published together with its usage records; false: an older build wrote some.
// Errors: Corruption, Io.
Result<bool> UsageIsKept(const KvReader& store);

// What family meta lacks, or has too much, of what `walk` says. Empty when usage records and totals are right. The
// walk must be of the store as it is now. Errors: Io.
Result<WriteBatch> UsageRepairs(const KvReader& store, const StoreWalk& walk);

// Walks the store and writes what it lacks of that. Call when nothing is published or collected meanwhile.
// Errors: Corruption, NoSpace, Io.
Status RepairUsage(KvStore& store);

// The order that a record's bases have.
void SortBases(UsageRecord* usage);

}  // namespace modelstore
