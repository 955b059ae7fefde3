#include "catalog/write/store_walk.h"

#include <algorithm>
#include <unordered_set>

#include "catalog/write/levels.h"
#include "catalog/write/store_usage.h"

namespace modelstore {
Result<StoreWalk> StoreWalk::Load(const KvReader& store, const JobControl* job) {
  StoreWalk walk;
  RETURN_IF_ERROR(walk.LoadModels(store));
  RETURN_IF_ERROR(walk.LoadTensors(store, job));
  RETURN_IF_ERROR(walk.LoadFiles(store, job));
  for (Model& model : walk.models_) {
    for (const ModelFile& file : model.record.files) {
      const auto it = walk.file_index_.find(file.sha256);
      model.files.push_back(it == walk.file_index_.end() ? kMissing : it->second);
    }
  }
  return walk;
}

Status StoreWalk::LoadModels(const KvReader& store) {
  return store.Scan(Family::kModels, "", [&](std::string_view key, ByteSpan value) -> Status {
    Model& model = models_.emplace_back();
    ASSIGN_OR_RETURN(model.record, ParseModelRecord(value));
    model.cost = key.size() + value.size();
    return OkStatus();
  });
}

Status StoreWalk::LoadTensors(const KvReader& store, const JobControl* job) {
  std::vector<std::pair<uint32_t, TensorId>> bases, parts;
  RETURN_IF_ERROR(store.Scan(Family::kTensors, "", [&](std::string_view key, ByteSpan value) -> Status {
    if (job != nullptr && job->cancelled()) return job->Check();
    Tensor tensor;
    ASSIGN_OR_RETURN(tensor.id, ParseTensorKey(key));
    ASSIGN_OR_RETURN(const TensorRecord record, ParseTensorRecord(value));
    const uint32_t index = static_cast<uint32_t>(tensors_.size());
    tensor.encoding = record.encoding().encoding;
    tensor.bytes = record.bytes;
    tensor.coded_bytes = record.coded_bytes;
    tensor.push = record.push;
    tensor.depth = record.depth;
    tensor.first_block = record.first_block;
    tensor.block_count = record.block_count;
    tensor.cost = TensorCost(record, value.size());
    ForEachBase(record, [&](const TensorId& base) { bases.emplace_back(index, base); });
    ForEachPart(record, [&](const TensorId& part) { parts.emplace_back(index, part); });
    tensor_index_.emplace(tensor.id, index);
    tensors_.push_back(std::move(tensor));
    return OkStatus();
  }));
  const auto link = [&](const TensorId& id, std::vector<uint32_t>& known) {
    const uint32_t index = FindTensor(id);
    if (std::find(known.begin(), known.end(), index) == known.end()) known.push_back(index);
  };
  for (const auto& [dependent, base] : bases) link(base, tensors_[dependent].bases);
  for (const auto& [whole, part] : parts) link(part, tensors_[whole].parts);
  return store.ScanKeys(Family::kSketches, "", [&](std::string_view key) -> Status {
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(key));
    if (const uint32_t index = FindTensor(id); index != kMissing) tensors_[index].has_sketch = true;
    return OkStatus();
  });
}

Status StoreWalk::LoadFiles(const KvReader& store, const JobControl* job) {
  return store.Scan(Family::kFiles, "", [&](std::string_view key, ByteSpan value) -> Status {
    if (job != nullptr && job->cancelled()) return job->Check();
    File file;
    if (key.size() != file.sha256.size())
      return Corruption("a file's key has " + std::to_string(key.size()) + " bytes");
    std::copy_n(AsBytes(key).begin(), file.sha256.size(), file.sha256.begin());
    ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value));
    file.kind = record.kind;
    file.bytes = record.bytes;
    file.cost = FileCost(value.size());
    file.extents.reserve(record.extents.size());
    for (const Extent& extent : record.extents) {
      const bool is_literal = extent.kind == Extent::Kind::kLiteral;
      file.extents.push_back({is_literal ? kMissing : FindTensor(extent.tensor), is_literal,
                              extent.kind == Extent::Kind::kTensorPart, !extent.name.empty(), extent.bytes});
    }
    file_index_.emplace(file.sha256, static_cast<uint32_t>(files_.size()));
    files_.push_back(std::move(file));
    return OkStatus();
  });
}

UsageRecord StoreWalk::UsageOf(const File& file) const {
  UsageRecord usage;
  usage.kind = file.kind;
  usage.cost_bytes = file.cost;
  std::unordered_map<uint32_t, size_t> seen;  // where in usage.tensors
  std::vector<uint32_t> held;
  const auto hold = [&](uint32_t index, uint64_t bytes, bool is_named, bool in_parts) {
    if (!seen.emplace(index, held.size()).second) return false;
    const Tensor& tensor = tensors_[index];
    usage.tensors.push_back(
        {ShortTensorId(tensor.id), tensor.cost, bytes, static_cast<uint8_t>(tensor.encoding), is_named, in_parts});
    held.push_back(index);
    return true;
  };
  for (const FileExtent& extent : file.extents) {
    if (extent.tensor == kMissing) {
      usage.literal_bytes += extent.bytes;
    } else if (!hold(extent.tensor, extent.bytes, extent.is_named, extent.is_part)) {
      (extent.is_part ? usage.tensors[seen[extent.tensor]].bytes : usage.repeated_bytes) += extent.bytes;
    }
  }
  for (size_t i = 0; i < held.size(); ++i) {
    for (const uint32_t part : tensors_[held[i]].parts)
      if (part != kMissing) hold(part, 0, false, false);
  }
  std::unordered_set<uint32_t> needed(held.begin(), held.end());
  std::vector<uint32_t> pending = held;
  while (!pending.empty()) {
    const Tensor& tensor = tensors_[pending.back()];
    pending.pop_back();
    for (const auto* references : {&tensor.bases, &tensor.parts}) {
      for (const uint32_t base : *references) {
        if (base == kMissing || !needed.insert(base).second) continue;
        usage.bases.push_back({ShortTensorId(tensors_[base].id), tensors_[base].cost});
        pending.push_back(base);
      }
    }
  }
  SortBases(&usage);
  return usage;
}

uint32_t StoreWalk::FindTensor(const TensorId& id) const {
  const auto it = tensor_index_.find(id);
  return it == tensor_index_.end() ? kMissing : it->second;
}

uint32_t StoreWalk::FindModel(std::string_view name) const {
  for (uint32_t i = 0; i < models_.size(); ++i) {
    if (models_[i].record.name == name) return i;
  }
  return kMissing;
}

StoreWalk::Reachable StoreWalk::Mark(uint32_t without, const std::vector<TensorId>& pinned) const {
  Reachable reachable;
  reachable.tensors.resize(tensors_.size());
  reachable.files.resize(files_.size());
  std::vector<uint32_t> pending;
  const auto reach = [&](uint32_t tensor) {
    if (tensor == kMissing || reachable.tensors[tensor]) return;
    reachable.tensors[tensor] = true;
    pending.push_back(tensor);
  };
  for (const TensorId& id : pinned) reach(FindTensor(id));
  for (uint32_t m = 0; m < models_.size(); ++m) {
    if (m == without) continue;
    for (const uint32_t file : models_[m].files) {
      if (file == kMissing || reachable.files[file]) continue;
      reachable.files[file] = true;
      for (const FileExtent& extent : files_[file].extents) reach(extent.tensor);
    }
  }
  while (!pending.empty()) {
    const uint32_t tensor = pending.back();
    pending.pop_back();
    for (const uint32_t base : tensors_[tensor].bases) reach(base);
    for (const uint32_t part : tensors_[tensor].parts) reach(part);
  }
  return reachable;
}

uint64_t StoreWalk::Cost(const Reachable& reachable) const {
  uint64_t cost = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) cost += reachable.tensors[i] ? tensors_[i].cost : 0;
  for (size_t i = 0; i < files_.size(); ++i) cost += reachable.files[i] ? files_[i].cost : 0;
  return cost;
}

uint64_t StoreWalk::TotalCost() const {
  uint64_t cost = 0;
  for (const Tensor& tensor : tensors_) cost += tensor.cost;
  for (const File& file : files_) cost += file.cost;
  return cost;
}

}  // namespace modelstore
