#include <algorithm>
#include <set>

#include "catalog/write/maintain.h"
#include "catalog/write/model_names.h"
#include "catalog/write/store_walk.h"

namespace modelstore {
namespace {

constexpr size_t kMaxNamedDependents = 20;
constexpr Family kModelFamilies[] = {Family::kModels, Family::kSketches, Family::kMeta};

// Tensors that only `model`'s files hold.
std::vector<char> OwnTensors(const StoreWalk& walk, uint32_t model) {
  std::vector<char> own(walk.tensors().size()), shared(walk.tensors().size());
  for (uint32_t m = 0; m < walk.models().size(); ++m) {
    for (const uint32_t file : walk.models()[m].files) {
      if (file == StoreWalk::kMissing) continue;
      for (const StoreWalk::FileExtent& extent : walk.files()[file].extents) {
        if (extent.tensor != StoreWalk::kMissing) (m == model ? own : shared)[extent.tensor] = true;
      }
    }
  }
  for (size_t t = 0; t < own.size(); ++t) own[t] = own[t] && !shared[t];
  return own;
}

// Names of the models that hold deltas against tensors of `own`.
std::set<std::string> Dependents(const StoreWalk& walk, uint32_t model, const std::vector<char>& own) {
  std::set<std::string> names;
  for (uint32_t m = 0; m < walk.models().size(); ++m) {
    if (m == model) continue;
    for (const uint32_t file : walk.models()[m].files) {
      if (file == StoreWalk::kMissing) continue;
      for (const StoreWalk::FileExtent& extent : walk.files()[file].extents) {
        if (extent.tensor == StoreWalk::kMissing) continue;
        const std::vector<uint32_t>& bases = walk.tensors()[extent.tensor].bases;
        if (std::any_of(bases.begin(), bases.end(), [&](uint32_t b) { return b != StoreWalk::kMissing && own[b]; }))
          names.insert(walk.models()[m].record.name);
      }
    }
  }
  return names;
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

// The change is in the synced log and visible already, so a failing flush does not undo it; the store refuses later
// writes with the reason.
void LeaveTheLog(KvStore& store) { (void)store.Flush(kModelFamilies); }

}  // namespace

Result<RemoveReport> Remove(Catalog& catalog, const std::string& name, bool dry_run) {
  RemoveReport report;
  {
    const std::unique_lock collect(catalog.collect_mutex());
    const std::lock_guard publish(catalog.publish_mutex());
    RETURN_IF_ERROR(catalog.FindModel(name).status());
    ASSIGN_OR_RETURN(const StoreWalk walk, StoreWalk::Load(catalog.store()));
    const uint32_t index = walk.FindModel(name);
    if (index == StoreWalk::kMissing) return Internal("the model '" + name + "' is listed under another name");
    const std::vector<char> own = OwnTensors(walk, index);
    if (const auto dependents = Dependents(walk, index, own); !dependents.empty()) return RefuseFor(name, dependents);

    const StoreWalk::Model& model = walk.models()[index];
    report.models = {name};
    report.freed_bytes = model.cost + walk.Cost(walk.Mark()) - walk.Cost(walk.Mark(index));
    if (dry_run) return report;

    ASSIGN_OR_RETURN(CatalogMeta meta, catalog.Meta());
    meta.model_count -= 1;
    meta.model_digest ^= ModelDigest(model.record);
    WriteBatch batch;
    batch.Delete(Family::kModels, name);
    // Without a sketch, no later push takes a tensor as its base that only waits for prune.
    for (size_t t = 0; t < own.size(); ++t) {
      if (own[t] && walk.tensors()[t].has_sketch) batch.Delete(Family::kSketches, TensorKey(walk.tensors()[t].id));
    }
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
    RETURN_IF_ERROR(catalog.store().Write(batch, Durability::kSync));
    LeaveTheLog(catalog.store());
  }
  catalog.NotifyChanged({TopLevelName(name)});
  return report;
}

Status Rename(Catalog& catalog, const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(CheckModelName(to));
  {
    const std::lock_guard publish(catalog.publish_mutex());
    ASSIGN_OR_RETURN(ModelRecord model, catalog.FindModel(from));
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
    LeaveTheLog(catalog.store());
  }
  std::vector<std::string> changed = {TopLevelName(from)};
  if (TopLevelName(to) != changed[0]) changed.push_back(TopLevelName(to));
  catalog.NotifyChanged(changed);
  return OkStatus();
}

}  // namespace modelstore
