#include <algorithm>
#include <set>
#include <utility>

#include "catalog/write/maintain.h"
#include "catalog/write/model_names.h"
#include "catalog/write/store_usage.h"

namespace modelstore {
namespace {

constexpr size_t kMaxNamedDependents = 20;
constexpr Family kModelFamilies[] = {Family::kModels, Family::kSketches, Family::kMeta};

// What taking one model away does.
struct Loss {
  std::vector<char> own;             // of each tensor: that model alone holds it
  std::vector<char> still_needed;    // by another model, which holds it or something stored against it
  std::set<std::string> dependents;  // models that need what only that model holds
  uint64_t freed_bytes = 0;
};

Loss LossOf(const StoreUsage& usage, uint32_t leaving) {
  Loss loss;
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

// Without a sketch, no later push takes a tensor as its base that only waits for prune.
Status RetireSketches(const KvStore& store, const StoreUsage& usage, const ModelRecord& model, const Loss& loss,
                      WriteBatch* batch) {
  // A damaged store may lack some of the records: their models can be removed all the same.
  std::set<TensorId> retired;
  std::vector<TensorId> pending;
  const auto retire = [&](const TensorId& id) {
    const uint32_t index = usage.FindTensor(id);
    if (index == StoreUsage::kMissing || loss.still_needed[index] || !retired.insert(id).second) return;
    pending.push_back(id);
    batch->Delete(Family::kSketches, TensorKey(id));
  };
  for (const ModelFile& file : model.files) {
    const Result<StoredValue> value = store.Get(Family::kFiles, FileKey(file.sha256));
    if (!value.ok() && value.status().code() == StatusCode::kNotFound) continue;
    RETURN_IF_ERROR(value.status());
    ASSIGN_OR_RETURN(const FileRecord record, ParseFileRecord(value->bytes()));
    for (const Extent& extent : record.extents) {
      if (extent.kind != Extent::Kind::kLiteral) retire(extent.tensor);
    }
  }
  // Bases that no model lists any more.
  while (!pending.empty()) {
    const TensorId id = pending.back();
    pending.pop_back();
    const Result<StoredValue> value = store.Get(Family::kTensors, TensorKey(id));
    if (!value.ok() && value.status().code() == StatusCode::kNotFound) continue;
    RETURN_IF_ERROR(value.status());
    ASSIGN_OR_RETURN(const TensorRecord record, ParseTensorRecord(value->bytes()));
    for (const ViewSegment& segment : record.view) {
      if (segment.kind == ViewSegment::Kind::kIdentity) retire(segment.base);
    }
  }
  return OkStatus();
}

Status RefuseFor(const std::string& name, const std::set<std::string>& dependents) {
  std::string list;
  size_t named = 0;
  for (const std::string& dependent : dependents) {
    if (named++ == kMaxNamedDependents) break;
    list += (list.empty() ? "" : ", ") + dependent;
  }
  if (dependents.size() > kMaxNamedDependents)
    list += " and " + std::to_string(dependents.size() - kMaxNamedDependents) + " more";
  return HasDependents("'" + name + "' is the base of " + list + ": remove " +
                       (dependents.size() == 1 ? "it" : "them") + " first");
}

// The change is in the synced log and visible already, so a failing flush does not undo it.
void LeaveTheLog(KvStore& store, std::string_view what, JobControl& job) {
  if (const Status flushed = store.Flush(kModelFamilies); !flushed.ok())
    job.Warn(std::string(what) + ", but the store could not flush its records: " + flushed.ToString());
}

}  // namespace

Result<RemoveReport> Remove(Catalog& catalog, const std::string& name, bool dry_run, JobControl& job,
                            const ModelCheck& may_change) {
  RemoveReport report;
  {
    const auto check = [&]() -> Status {
      ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
      return may_change ? may_change(model) : OkStatus();
    };
    RETURN_IF_ERROR(check());
    ASSIGN_OR_RETURN(const CollectGate::Hold alone, catalog.collect_gate().EnterAlone(job));
    const std::lock_guard publish(catalog.publish_mutex());
    RETURN_IF_ERROR(check());
    ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::LoadLocked(catalog.store()));
    const uint32_t index = usage.FindModel(name);
    if (index == StoreUsage::kMissing) return Internal("the model '" + name + "' is listed under another name");
    const Loss loss = LossOf(usage, index);
    if (!loss.dependents.empty()) return RefuseFor(name, loss.dependents);

    const ModelRecord& model = usage.models()[index].record;
    report.models = {name};
    report.freed_bytes = loss.freed_bytes;
    if (dry_run) return report;

    ASSIGN_OR_RETURN(CatalogMeta meta, catalog.Meta());
    meta.model_count -= 1;
    meta.model_digest ^= ModelDigest(model);
    WriteBatch batch;
    batch.Delete(Family::kModels, name);
    RETURN_IF_ERROR(RetireSketches(catalog.store(), usage, model, loss, &batch));
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
    RETURN_IF_ERROR(catalog.store().Write(batch, Durability::kSync));
    LeaveTheLog(catalog.store(), "'" + name + "' is removed", job);
  }
  catalog.NotifyChanged({TopLevelName(name)});
  return report;
}

Status Rename(Catalog& catalog, const std::string& from, const std::string& to, JobControl& job,
              const ModelCheck& may_change) {
  RETURN_IF_ERROR(CheckModelName(to));
  {
    const std::lock_guard publish(catalog.publish_mutex());
    ASSIGN_OR_RETURN(ModelRecord model, catalog.FindModel(from));
    if (may_change) RETURN_IF_ERROR(may_change(model));
    if (from == to) return AlreadyExists("the model is named '" + to + "' already");
    RETURN_IF_ERROR(CheckNameIsFree(catalog.store(), to, from));
    ASSIGN_OR_RETURN(CatalogMeta meta, catalog.Meta());
    WriteBatch batch;
    batch.Delete(Family::kModels, from);
    meta.model_digest ^= ModelDigest(model);
    model.name = to;
    meta.model_digest ^= ModelDigest(model);
    batch.Put(Family::kModels, to, Serialize(model));
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
    RETURN_IF_ERROR(catalog.store().Write(batch, Durability::kSync));
    LeaveTheLog(catalog.store(), "'" + from + "' is renamed to '" + to + "'", job);
  }
  std::vector<std::string> changed = {TopLevelName(from)};
  if (TopLevelName(to) != changed[0]) changed.push_back(TopLevelName(to));
  catalog.NotifyChanged(changed);
  return OkStatus();
}

}  // namespace modelstore
