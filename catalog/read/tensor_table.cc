#include "catalog/read/tensor_table.h"

#include <algorithm>
#include <string>

#include "catalog/read/block_memory.h"
#include "codec/decode/block_decoder.h"

namespace modelstore {
namespace {

std::string Number(uint64_t n) { return std::to_string(n); }

// About what a parsed tensor takes in memory.
uint64_t CostBytes(const OpenTensor& tensor) {
  uint64_t symbols = 0;
  for (const RansContext& context : tensor.frame.model.contexts) symbols += context.size();
  const uint64_t tables = tensor.frame.tables == nullptr ? 0 : 4096;
  uint64_t compact = 0;
  if (tensor.frame.compact != nullptr) {
    for (const CompactSegment& segment : tensor.frame.compact->segments)
      compact += sizeof(segment) + (segment.row_mask.size() + segment.rows_before.size()) * sizeof(uint64_t);
  }
  const TensorRecord& record = tensor.record;
  uint64_t segments = 0;
  for (const TensorInput& input : record.inputs) segments += input.view.size();
  return sizeof(OpenTensor) + 128 + record.shape.size() * sizeof(uint64_t) + record.frame.size() +
         segments * sizeof(ViewSegment) + symbols * sizeof(RansSymbol) + tables + compact;
}

// What the tensor's largest block in `dtype` takes.
uint64_t BlockHeldBytes(const Frame& frame, DType dtype) {
  return BlockMemory::TakenBytes(std::min<uint64_t>(frame.block_elems, frame.elems) * DTypeBytes(dtype));
}

Status CheckFrame(const OpenTensor& tensor) {
  const TensorRecord& record = tensor.record;
  const Frame& frame = tensor.frame;
  if (frame.dtype != record.dtype)
    return Corruption("its frame holds " + std::string(DTypeName(frame.dtype)) + ", its record says " +
                      std::string(DTypeName(record.dtype)));
  if (frame.elems * DTypeBytes(frame.dtype) != record.bytes)
    return Corruption("its frame holds " + Number(frame.elems) + " elements, its record says " + Number(record.bytes) +
                      " bytes");
  const uint32_t stored_blocks = FactsOf(frame.encoding).has_blocks ? frame.BlockCount() : 0;
  if (stored_blocks != record.block_count)
    return Corruption("its frame has " + Number(stored_blocks) + " blocks, its record says " +
                      Number(record.block_count));
  if (record.block_count > UINT32_MAX - record.first_block) return Corruption("its block numbers overflow");
  return OkStatus();
}

Status TooDeep(const TensorId& id, uint8_t depth, uint8_t max_depth) {
  return Corruption(TensorName(id) + ": depth " + Number(depth) + " where at most " + Number(max_depth) +
                    " is possible");
}

}  // namespace

Result<TensorRecord> LoadTensorRecord(const KvReader& store, const TensorId& id) {
  auto value = store.Get(Family::kTensors, TensorKey(id));
  if (!value.ok()) {
    if (value.status().code() == StatusCode::kNotFound)
      return NotFound(TensorName(id) + ": the store has no such tensor");
    return value.status().WithContext(TensorName(id));
  }
  auto record = ParseTensorRecord(value->bytes());
  if (!record.ok()) return record.status().WithContext(TensorName(id));
  return record;
}

Result<TensorRef> TensorTable::Get(const TensorId& id, uint8_t max_depth) {
  TensorRef tensor, introduced;
  {
    const MutexLock lock(mutex_);
    if (const auto it = slots_.find(id); it != slots_.end()) {
      recent_.splice(recent_.begin(), recent_, it->second);
      tensor = it->second->tensor;
    } else if (const auto known = introduced_.find(id); known != introduced_.end()) {
      introduced = known->second.back();
    }
  }
  if (tensor == nullptr) {
    // What is published stays; what was introduced may be another push's that fails.
    Result<TensorRef> published = Load(id, max_depth);
    if (introduced == nullptr || published.status().code() != StatusCode::kNotFound) return published;
    tensor = introduced;
  }
  if (tensor->record.depth <= max_depth) return tensor;
  if (tensor != introduced) {
    ASSIGN_OR_RETURN(TensorRef now, Renew(id, tensor->record.push, max_depth));
    if (now != nullptr) return now;
  }
  return TooDeep(id, tensor->record.depth, max_depth);
}

Result<TensorRef> TensorTable::GetReferenced(const TensorId& id, uint8_t max_depth) {
  auto tensor = Get(id, max_depth);
  if (!tensor.ok() && tensor.status().code() == StatusCode::kNotFound)
    return Corruption(std::string(tensor.status().message()) + ", although others refer to it");
  return tensor;
}

Result<TensorRef> TensorTable::Open(const TensorId& id, TensorRecord record, uint8_t max_depth) {
  auto tensor = std::make_shared<OpenTensor>();
  tensor->id = id;
  tensor->record = std::move(record);
  // Before its bases are loaded: each is allowed less, so that hostile records cannot recurse without end.
  if (tensor->record.depth > max_depth) return TooDeep(id, tensor->record.depth, max_depth);
  auto frame = ParseFrame(tensor->record.frame);
  if (!frame.ok()) return frame.status().WithContext(TensorName(id));
  tensor->frame = std::move(*frame);
  if (const Status status = CheckFrame(*tensor); !status.ok()) return status.WithContext(TensorName(id));
  const auto decoding_bytes = CheckView(*tensor);
  if (!decoding_bytes.ok()) return decoding_bytes.status().WithContext(TensorName(id));
  tensor->peak_bytes = *decoding_bytes;
  return TensorRef(std::move(tensor));
}

void TensorTable::Introduce(TensorRef tensor) {
  const MutexLock lock(mutex_);
  const auto known = introduced_.find(tensor->id);
  if (known == introduced_.end()) {
    introduced_.emplace(tensor->id, std::vector{tensor});  // or there is no list: it may not be empty
  } else {
    known->second.push_back(std::move(tensor));
  }
}

void TensorTable::Withdraw(const TensorRef& tensor) {
  const MutexLock lock(mutex_);
  const auto known = introduced_.find(tensor->id);
  if (known == introduced_.end()) return;
  std::erase(known->second, tensor);
  if (known->second.empty()) introduced_.erase(known);
}

Result<TensorRef> TensorTable::Load(const TensorId& id, uint8_t max_depth) {
  uint64_t generation;
  {
    const MutexLock lock(mutex_);
    generation = generation_;
  }
  ASSIGN_OR_RETURN(TensorRecord record, LoadTensorRecord(store_, id));
  const PushId push = record.push;
  const Result<TensorRef> opened = Open(id, std::move(record), max_depth);
  if (!opened.ok()) {
    ASSIGN_OR_RETURN(TensorRef now, Renew(id, push, max_depth));
    return now != nullptr ? Result<TensorRef>(std::move(now)) : opened;
  }
  const TensorRef tensor = *opened;
  const uint64_t bytes = CostBytes(*tensor);
  const MutexLock lock(mutex_);
  if (const auto it = slots_.find(id); it != slots_.end()) {
    const TensorRef& kept = it->second->tensor;
    return kept->record.push == push ? kept : tensor;
  }
  if (generation != generation_ || bytes > capacity_bytes_) return tensor;
  while (bytes_ + bytes > capacity_bytes_) {
    bytes_ -= recent_.back().bytes;
    slots_.erase(recent_.back().tensor->id);
    recent_.pop_back();
  }
  std::list<Slot> made;
  made.push_front(Slot{tensor, bytes});
  slots_.emplace(id, made.begin());
  recent_.splice(recent_.begin(), made);  // from here on nothing fails
  bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, bytes_);
  return tensor;
}

Result<TensorRef> TensorTable::Renew(const TensorId& id, PushId old, uint8_t max_depth) {
  ASSIGN_OR_RETURN(const TensorRecord record, LoadTensorRecord(store_, id));
  if (record.push == old) return TensorRef();
  Forget(id);
  return Load(id, max_depth);
}

Status TensorTable::CheckInput(const TensorRecord& record, const InputNeed& need, Bases* bases) {
  const View& view = record.ViewOf(need.role);
  const std::string_view what = InputName(need.role);
  const uint64_t elems = need.elems;
  const DType dtype = need.dtype;
  uint64_t covered = 0;
  for (size_t i = 0; i < view.size(); ++i) {
    const ViewSegment& segment = view[i];
    const std::string name = std::string(what) + " segment " + Number(i);
    if (segment.elems > elems - covered) return Corruption(name + ": ends past the tensor");
    covered += segment.elems;
    if (segment.kind == ViewSegment::Kind::kNone) continue;
    if (record.depth == 0) return Corruption(name + ": names a base, but the tensor's depth is 0");
    auto it = bases->find(segment.base);
    if (it == bases->end()) {
      auto found = GetReferenced(segment.base, static_cast<uint8_t>(record.depth - 1));
      if (!found.ok()) return found.status().WithContext(name);
      const Frame& frame = (*found)->frame;
      if (!FactsOf(frame.encoding).may_be_base)
        return Corruption(name + ": a " + std::string(FactsOf(frame.encoding).name) + " tensor is nobody's base");
      it = bases
               ->emplace(segment.base, Base{.elems = frame.elems,
                                            .block_bytes = BlockHeldBytes(frame, frame.dtype),
                                            .peak_bytes = (*found)->peak_bytes,
                                            .dtype = frame.dtype})
               .first;
    }
    const Base& base = it->second;
    if (segment.base_offset_elems > base.elems || segment.elems > base.elems - segment.base_offset_elems)
      return Corruption(name + ": reaches past its base's " + Number(base.elems) + " elements");
    if (need.is_converted ? !CanPredict(base.dtype, dtype) : base.dtype != dtype)
      return Corruption(name + ": elements of " + std::string(DTypeName(base.dtype)) + " cannot " +
                        (need.is_converted ? "predict " : "be ") + std::string(DTypeName(dtype)));
  }
  if (covered != elems)
    return Corruption("its " + std::string(what) + " covers " + Number(covered) + " of " + Number(elems) + " elements");
  return OkStatus();
}

Result<uint64_t> TensorTable::CheckView(const OpenTensor& tensor) {
  const TensorRecord& record = tensor.record;
  const Frame& frame = tensor.frame;
  const EncodingRow& row = RowOf(frame.encoding);
  const std::vector<InputNeed> needs = row.inputs(frame);
  for (const TensorInput& input : record.inputs) {
    if (!input.view.empty() && std::ranges::find(needs, input.role, &InputNeed::role) == needs.end())
      return Corruption("it has a " + std::string(InputName(input.role)) + ", but is " +
                        std::string(FactsOf(frame.encoding).name));
  }
  if (needs.empty() && record.depth != 0)
    return Corruption("it has depth " + Number(record.depth) + ", but is not made from others");
  Bases bases;
  for (const InputNeed& need : needs) RETURN_IF_ERROR(CheckInput(record, need, &bases));
  std::vector<SeenNeed> seen;
  for (const auto& [id, base] : bases) seen.push_back({.block = base.block_bytes, .peak = base.peak_bytes});
  const uint64_t block_bytes = BlockHeldBytes(frame, frame.dtype);
  const BlockNeed own = {.block = block_bytes,
                         .stored = block_bytes + kBlockHeaderBytes,
                         .prediction = BlockHeldBytes(frame, frame.coded_dtype)};
  return row.peak_bytes(frame, own, seen);
}

uint64_t TensorTable::peak_bytes() const {
  const MutexLock lock(mutex_);
  return peak_bytes_;
}

void TensorTable::Forget(const TensorId& id) {
  const MutexLock lock(mutex_);
  ++generation_;  // what is being read from the store meanwhile is not kept either
  const auto it = slots_.find(id);
  if (it == slots_.end()) return;
  bytes_ -= it->second->bytes;
  recent_.erase(it->second);
  slots_.erase(it);
}

void TensorTable::Clear() {
  const MutexLock lock(mutex_);
  ++generation_;
  slots_.clear();
  recent_.clear();
  bytes_ = 0;
}

}  // namespace modelstore
