// TensorTable: parsed tensor records, checked against each other (layer: catalog/read; private).
//
// Thread-safe. Keeps the most recently used tensors within a budget of bytes; what is in use lives on outside it.
#pragma once

#include <list>
#include <map>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "catalog/read/open_tensor.h"
#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/decode/encodings.h"
#include "codec/support/mutex.h"

namespace modelstore {

// Longest chain of bases that is read.
inline constexpr uint8_t kMaxDepth = 8;

// Errors: NotFound, Corruption, Unsupported, Io.
Result<TensorRecord> LoadTensorRecord(const KvReader& store, const TensorId& id);

class TensorTable {
 public:
  TensorTable(const KvReader& store, uint64_t capacity_bytes) : store_(store), capacity_bytes_(capacity_bytes) {}

  // The tensor, its record and frame in agreement, its view tiling it, and its bases (all the way down) able to predict
  // it and of a smaller depth. Errors: NotFound, Corruption, Unsupported, Io.
  Result<TensorRef> Get(const TensorId& id) { return Get(id, kMaxDepth); }
  // A tensor that another record refers to: NotFound becomes Corruption.
  Result<TensorRef> GetReferenced(const TensorId& id) { return GetReferenced(id, kMaxDepth); }
  // Checks the views against what they name. The result: OpenTensor::peak_bytes.
  Result<uint64_t> CheckView(const OpenTensor& tensor);
  uint64_t peak_bytes() const;
  // A tensor from a record that is not in the store, checked like those that are. Errors: as Get.
  Result<TensorRef> Open(const TensorId& id, TensorRecord record) { return Open(id, std::move(record), kMaxDepth); }
  // Makes such a tensor known until it is withdrawn. Several may have one id: the one that came last is found.
  void Introduce(TensorRef tensor);
  void Withdraw(const TensorRef& tensor);
  // The one rule for cached records: what is cached may be older than the record, because a push replaces that of a
  // computed tensor by one with blocks, of the same content. Whoever finds that a tensor does not do (it cannot be
  // opened or decoded, it is too deep) asks for it as it is now; null when its record was not replaced.
  // Errors: as Get.
  Result<TensorRef> Renew(const OpenTensor& old) { return Renew(old.id, old.record.push, kMaxDepth); }
  // Forgets one that is published, so that nobody goes on computing what has blocks now.
  void Forget(const TensorId& id);
  // Forgets all that is published; what is being read from the store meanwhile is not kept either, as its record may be
  // gone.
  void Clear();

 private:
  struct Slot {
    TensorRef tensor;
    uint64_t bytes;
  };
  struct IdHash {
    size_t operator()(const TensorId& id) const { return static_cast<size_t>(id.hash.low ^ id.ordinal); }
  };

  Result<TensorRef> Get(const TensorId& id, uint8_t max_depth);
  Result<TensorRef> GetReferenced(const TensorId& id, uint8_t max_depth);
  Result<TensorRef> Open(const TensorId& id, TensorRecord record, uint8_t max_depth);
  Result<TensorRef> Load(const TensorId& id, uint8_t max_depth);
  // Null when the record is still that of push `old`.
  Result<TensorRef> Renew(const TensorId& id, PushId old, uint8_t max_depth);

  // What a tensor needs of one that its views name.
  struct Base {
    uint64_t elems = 0, block_bytes = 0, peak_bytes = 0;
    DType dtype = DType::kOpaque;
  };
  // Of all that one tensor names, each looked up once however often a view names it.
  using Bases = std::map<TensorId, Base>;
  // Checks that the record's view of that role tiles what is needed with (parts of) existing tensors that may be
  // others' base.
  Status CheckInput(const TensorRecord& record, const InputNeed& need, Bases* bases);

  const KvReader& store_;
  const uint64_t capacity_bytes_;
  mutable Mutex mutex_;
  std::unordered_map<TensorId, std::list<Slot>::iterator, IdHash> slots_ MS_GUARDED_BY(mutex_);
  std::list<Slot> recent_ MS_GUARDED_BY(mutex_);
  std::unordered_map<TensorId, std::vector<TensorRef>, IdHash> introduced_ MS_GUARDED_BY(mutex_);  // none empty
  uint64_t bytes_ MS_GUARDED_BY(mutex_) = 0, peak_bytes_ MS_GUARDED_BY(mutex_) = 0;
  uint64_t generation_ MS_GUARDED_BY(mutex_) = 0;  // counts Clear and Forget
};

}  // namespace modelstore
