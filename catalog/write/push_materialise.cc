#include <set>
#include <utility>

#include "catalog/write/push_job.h"
#include "codec/support/mutex.h"

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

std::set<TensorId> PushJob::NeededBases() const {
  std::set<TensorId> bases;
  for (const NewTensor& tensor : new_tensors_) {
    if (tensor.needed && !tensor.record.is_computed())
      ForEachBase(tensor.record, [&](const TensorId& base) { bases.insert(base); });
  }
  return bases;
}

Status PushJob::MaterialiseBases() {
  const std::set<TensorId> bases = NeededBases();
  struct Base {
    TensorRef tensor;
    uint32_t first_block = 0;
  };
  std::vector<Base> projected;
  uint64_t bytes = 0;
  for (const TensorId& id : bases) {
    ASSIGN_OR_RETURN(TensorRef tensor, catalog_.reader().OpenTensorById(id));
    if (!tensor->record.is_computed()) continue;
    const uint64_t blocks = BlocksFor(tensor->record.bytes);
    if (next_block_ + blocks > UINT32_MAX) return OkStatus();  // they stay as they are
    bytes += tensor->record.bytes;
    projected.push_back({std::move(tensor), static_cast<uint32_t>(next_block_)});
    next_block_ += blocks;
  }
  // It is for speed alone: where there is no room, or a base is damaged, bases stay as they are.
  ASSIGN_OR_RETURN(const bool has_room, HasRoomFor(bytes));
  if (projected.empty() || !has_room) return OkStatus();
  job_.Begin("materialising", bytes);
  return lanes_->Run(projected.size(), [&](size_t i) -> Status {
    RETURN_IF_ERROR(job_.Check());
    const Status made = Materialise(projected[i].tensor, projected[i].first_block);
    if (made.ok() || (made.code() != StatusCode::kNoSpace && made.code() != StatusCode::kCorruption)) return made;
    WriteBatch batch;
    TensorRecord partial;
    partial.first_block = projected[i].first_block;
    partial.block_count = static_cast<uint32_t>(BlocksFor(projected[i].tensor->record.bytes));
    DropBlocks(partial, &batch);
    return catalog_.store().Write(batch, Durability::kNone);
  });
}

Status PushJob::Materialise(const TensorRef& tensor, uint32_t first_block) {
  const TensorRecord& old = tensor->record;
  SourceFile file;
  file.shown_as = "a base that is computed";
  file.bytes = old.bytes;
  file.content = std::make_shared<StoredTensor>(catalog_.reader(), tensor);
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(file));
  SourceExtent extent;
  extent.bytes = old.bytes;
  extent.dtype = old.dtype;
  extent.shape = old.shape;
  BufferPool::Lease hold(holds_);
  ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, extent, hold_bytes_, hold.get()));
  ASSIGN_OR_RETURN(const BaseChoice choice, bases_->Choose(data, {}));
  NewTensor made;
  made.id = tensor->id;
  JobPart part(job_, old.bytes);
  ASSIGN_OR_RETURN(made.record, writer_->Store(data, choice, first_block, &part));
  // Readers know the tensor by its blocks.
  ASSIGN_OR_RETURN(const Frame frame, ParseFrame(made.record.frame));
  if (frame.block_elems != tensor->frame.block_elems) return Corruption("blocks of another size");
  materialised_.Add(std::move(made));
  return OkStatus();
}

Status PushJob::AddMaterialised(WriteBatch* batch) {
  const std::set<TensorId> bases = NeededBases();
  std::set<TensorId> materialised;
  for (NewTensor& tensor : materialised_) {
    const std::string key = TensorKey(tensor.id);
    const Result<StoredValue> stored = catalog_.store().Get(Family::kTensors, key);
    const Result<TensorRecord> current = stored.ok() ? ParseTensorRecord(stored->bytes()) : stored.status();
    // Another push was faster, or what needed it turned out to be stored already.
    tensor.needed = current.ok() && current->is_computed() && bases.contains(tensor.id);
    if (tensor.needed) {
      batch->Put(Family::kTensors, key, Serialize(tensor.record));
      materialised.insert(tensor.id);
    } else {
      DropBlocks(tensor.record, batch);
    }
  }
  // What is stored against them is as deep as they make it now.
  for (NewTensor& tensor : new_tensors_) {
    if (materialised.empty() || !tensor.needed || tensor.record.is_computed()) continue;
    bool all = tensor.record.depth > 0;
    ForEachBase(tensor.record, [&](const TensorId& base) { all = all && materialised.contains(base); });
    if (all) tensor.record.depth = 1;
  }
  return OkStatus();
}

}  // namespace modelstore
