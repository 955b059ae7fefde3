#include "catalog/write/model_loss.h"

#include <utility>

namespace modelstore {

ModelLoss LossOf(const StoreUsage& usage, uint32_t leaving) {
  ModelLoss loss;
  loss.own.resize(usage.tensor_costs().size());
  loss.still_needed.resize(usage.tensor_costs().size());
  std::vector<char> own_files(usage.files().size());
  const auto for_files = [&](uint32_t m, const auto& visit) {
    for (const uint32_t file : usage.models()[m].files) {
      if (file != StoreUsage::kMissing) visit(file, usage.files()[file]);
    }
  };
  for_files(leaving, [&](uint32_t index, const StoreUsage::File& file) {
    own_files[index] = true;
    for (const StoreUsage::HeldTensor& held : usage.TensorsOf(file)) loss.own[held.tensor] = true;
  });
  for (uint32_t m = 0; m < usage.models().size(); ++m) {
    if (m == leaving) continue;
    for_files(m, [&](uint32_t index, const StoreUsage::File& file) {
      own_files[index] = false;
      for (const StoreUsage::HeldTensor& held : usage.TensorsOf(file)) {
        loss.own[held.tensor] = false;
        loss.still_needed[held.tensor] = true;
      }
    });
  }
  for (uint32_t m = 0; m < usage.models().size(); ++m) {
    if (m == leaving) continue;
    for_files(m, [&](uint32_t, const StoreUsage::File& file) {
      for (const uint32_t base : usage.BasesOf(file)) {
        loss.still_needed[base] = true;
        if (loss.own[base]) loss.dependents.insert(usage.models()[m].record.name);
      }
    });
  }
  for (const StoreUsage::Model& model : usage.models()) {
    if (model.record.derived && model.record.base == usage.models()[leaving].record.id)
      loss.dependents.insert(model.record.name);
  }
  loss.freed_bytes = usage.models()[leaving].cost_bytes;
  std::vector<char> counted(usage.tensor_costs().size());
  const auto count = [&](uint32_t tensor) {
    if (!loss.still_needed[tensor] && !std::exchange(counted[tensor], true))
      loss.freed_bytes += usage.tensor_costs()[tensor];
  };
  for_files(leaving, [&](uint32_t index, const StoreUsage::File& file) {
    if (std::exchange(own_files[index], false)) loss.freed_bytes += file.cost_bytes;
    for (const StoreUsage::HeldTensor& held : usage.TensorsOf(file)) count(held.tensor);
    for (const uint32_t base : usage.BasesOf(file)) count(base);
  });
  return loss;
}

namespace {

// In a damaged store some of the records may be missing or malformed: models can be removed all the same.
bool IsLost(const Status& status) { return status.code() == StatusCode::kNotFound || IsDamage(status); }

// Calls visit(id) for each tensor that the model's files list.
template <typename VisitFn>
Status ForEachListed(const KvReader& store, const ModelRecord& model, const VisitFn& visit) {
  for (const ModelFile& file : model.files) {
    const Result<StoredValue> value = store.Get(Family::kFiles, FileKey(file.sha256));
    const Result<FileRecord> record = value.ok() ? ParseFileRecord(value->bytes()) : value.status();
    if (IsLost(record.status())) continue;
    RETURN_IF_ERROR(record.status());
    for (const Extent& extent : record->extents) {
      if (extent.kind != Extent::Kind::kLiteral) visit(extent.tensor);
    }
  }
  return OkStatus();
}

// Calls visit(id) for each tensor that the record of `id` refers to.
template <typename VisitFn>
Status ForEachReferenceOf(const KvReader& store, const TensorId& id, const VisitFn& visit) {
  const Result<StoredValue> value = store.Get(Family::kTensors, TensorKey(id));
  const Result<TensorRecord> record = value.ok() ? ParseTensorRecord(value->bytes()) : value.status();
  if (IsLost(record.status())) return OkStatus();
  RETURN_IF_ERROR(record.status());
  ForEachReference(*record, visit);
  return OkStatus();
}

// Whether what `model` lists refers to one of `held`, directly or through others.
Result<bool> Needs(const KvReader& store, const ModelRecord& model, const std::set<TensorId>& held) {
  std::set<TensorId> seen;
  std::vector<TensorId> pending;
  bool found = false;
  const auto see = [&](const TensorId& id) {
    if (seen.insert(id).second) pending.push_back(id);
  };
  RETURN_IF_ERROR(ForEachListed(store, model, see));
  while (!pending.empty() && !found) {
    const TensorId id = pending.back();
    pending.pop_back();
    RETURN_IF_ERROR(ForEachReferenceOf(store, id, [&](const TensorId& needed) {
      found = found || held.contains(needed);
      see(needed);
    }));
  }
  return found;
}

}  // namespace

Result<std::set<std::string>> ConfirmDependents(const KvReader& store, const StoreUsage& usage, uint32_t leaving,
                                                const ModelLoss& loss) {
  const ModelRecord& model = usage.models()[leaving].record;
  std::set<TensorId> held;
  if (!loss.dependents.empty()) {
    RETURN_IF_ERROR(ForEachListed(store, model, [&](const TensorId& id) {
      const uint32_t index = usage.FindTensor(id);
      if (index != StoreUsage::kMissing && loss.own[index]) held.insert(id);
    }));
  }
  std::set<std::string> confirmed;
  for (const std::string& name : loss.dependents) {
    const ModelRecord& dependent = usage.models()[usage.FindModel(name)].record;
    bool needs = dependent.derived && dependent.base == model.id;
    if (!needs) {
      ASSIGN_OR_RETURN(needs, Needs(store, dependent, held));
    }
    if (needs) confirmed.insert(name);
  }
  return confirmed;
}

void KeepForFile(const StoreUsage& usage, const UsageRecord& file, ModelLoss* loss) {
  const auto keep = [&](uint64_t id) {
    if (const uint32_t index = usage.FindShortId(id); index != StoreUsage::kMissing) loss->still_needed[index] = true;
  };
  for (const UsageRecord::Tensor& tensor : file.tensors) keep(tensor.id);
  for (const UsageRecord::Base& base : file.bases) keep(base.id);
}

Status RetireSketches(const KvReader& store, const StoreUsage& usage, const ModelRecord& model, const ModelLoss& loss,
                      WriteBatch* batch) {
  std::set<TensorId> retired;
  std::vector<TensorId> pending;
  const auto retire = [&](const TensorId& id) {
    const uint32_t index = usage.FindTensor(id);
    if (index == StoreUsage::kMissing || loss.still_needed[index] || !retired.insert(id).second) return;
    pending.push_back(id);
    batch->Delete(Family::kSketches, TensorKey(id));
  };
  RETURN_IF_ERROR(ForEachListed(store, model, retire));
  // Bases that no model lists any more, and parts of compact tensors, which none lists.
  while (!pending.empty()) {
    const TensorId id = pending.back();
    pending.pop_back();
    RETURN_IF_ERROR(ForEachReferenceOf(store, id, retire));
  }
  return OkStatus();
}

}  // namespace modelstore
