#include <set>
#include <utility>

#include "catalog/write/push_job.h"

namespace modelstore {
namespace {

// A stored tensor as a source.
class StoredTensor : public SourceContent {
 public:
  StoredTensor(ReadEngine& reader, TensorRef tensor) : reader_(reader), tensor_(std::move(tensor)) {}
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    return reader_.ReadTensor(tensor_, offset, out);
  }

 private:
  ReadEngine& reader_;
  TensorRef tensor_;
};

}  // namespace

Status PushJob::MaterialiseBases() {
  std::set<TensorId> bases;
  for (const NewTensor& tensor : new_tensors_) {
    if (tensor.needed && !tensor.record.is_computed())
      ForEachBase(tensor.record, [&](const TensorId& base) { bases.insert(base); });
  }
  struct Base {
    TensorRef tensor;
    uint32_t first_block = 0;
  };
  std::vector<Base> projected;
  uint64_t bytes = 0;
  for (const TensorId& id : bases) {
    ASSIGN_OR_RETURN(TensorRef tensor, catalog_.reader().OpenTensorById(id));
    if (!tensor->record.is_projected()) continue;
    const uint64_t blocks = BlocksFor(tensor->record.bytes);
    if (next_block_ + blocks > UINT32_MAX) return OkStatus();  // they stay as they are
    bytes += tensor->record.bytes;
    projected.push_back({std::move(tensor), static_cast<uint32_t>(next_block_)});
    next_block_ += blocks;
  }
  if (projected.empty()) return OkStatus();
  job_.Begin("materialising", bytes);
  return lanes_->Run(projected.size(), [&](size_t i) -> Status {
    RETURN_IF_ERROR(job_.Check());
    const TensorRecord& old = projected[i].tensor->record;
    SourceFile file;
    file.shown_as = "a base that is computed";
    file.bytes = old.bytes;
    file.content = std::make_shared<StoredTensor>(catalog_.reader(), projected[i].tensor);
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(file));
    SourceExtent extent;
    extent.bytes = old.bytes;
    extent.dtype = old.dtype;
    extent.shape = old.shape;
    BufferPool::Lease hold(holds_);
    ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, extent, hold_bytes_, hold.get()));
    ASSIGN_OR_RETURN(const BaseChoice choice, bases_->Choose(data, {}));
    NewTensor made;
    made.id = projected[i].tensor->id;
    ASSIGN_OR_RETURN(made.record, writer_->Store(data, choice, projected[i].first_block));
    const std::lock_guard lock(mutex_);
    materialised_.push_back(std::move(made));
    return OkStatus();
  });
}

Status PushJob::AddMaterialised(WriteBatch* batch) {
  for (NewTensor& tensor : materialised_) {
    const std::string key = TensorKey(tensor.id);
    ASSIGN_OR_RETURN(const StoredValue stored, catalog_.store().Get(Family::kTensors, key));
    ASSIGN_OR_RETURN(const TensorRecord current, ParseTensorRecord(stored.bytes()));
    // Another push was faster, or what needed it turned out to be stored already.
    tensor.needed = current.is_projected();
    if (tensor.needed) {
      batch->Put(Family::kTensors, key, Serialize(tensor.record));
    } else {
      DropBlocks(tensor.record, batch);
    }
  }
  return OkStatus();
}

}  // namespace modelstore
