#include <set>

#include "catalog/write/maintain.h"
#include "catalog/write/model_loss.h"
#include "catalog/write/model_names.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

constexpr size_t kMaxNamedDependents = 20;
constexpr Family kModelFamilies[] = {Family::kModels, Family::kSketches, Family::kMeta};

Status RefuseFor(const std::string& name, const StoreUsage& usage, const std::set<std::string>& dependents,
                 const ModelFilter& may_see) {
  std::string list;
  size_t named = 0, hidden = 0;
  for (const std::string& dependent : dependents) {
    if (may_see && !may_see(usage.models()[usage.FindModel(dependent)].record)) {
      ++hidden;
    } else if (named++ < kMaxNamedDependents) {
      list += (list.empty() ? "" : ", ") + dependent;
    }
  }
  if (named > kMaxNamedDependents) list += " and " + std::to_string(named - kMaxNamedDependents) + " more";
  if (hidden != 0)
    list += (list.empty() ? "" : " and ") + std::to_string(hidden) + (hidden == 1 ? " model" : " models") +
            " that you may not see";
  return HasDependents("'" + name + "' is the base of " + list + ": remove " +
                       (dependents.size() == 1 ? "it" : "them") + " first" +
                       (hidden != 0 ? " (root and their owners can)" : ""));
}

// The change is in the synced log and visible already, so a failing flush does not undo it.
void LeaveTheLog(KvStore& store, std::string_view what, JobControl& job) {
  if (const Status flushed = store.Flush(kModelFamilies); !flushed.ok())
    job.Warn(std::string(what) + ", but the store could not flush its records: " + flushed.ToString());
}

}  // namespace

Result<RemoveReport> Remove(Catalog& catalog, const std::string& name, bool dry_run, JobControl& job,
                            const ModelCheck& may_change, const ModelFilter& may_see) {
  RemoveReport report;
  ChangeNotice notice(catalog, {name});
  {
    const auto check = [&]() -> Status {
      ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
      return may_change ? may_change(model) : OkStatus();
    };
    RETURN_IF_ERROR(check());
    ASSIGN_OR_RETURN(const CollectGate::Hold alone, catalog.collect_gate().EnterAlone(job));
    MutexLock publish(catalog.publish_mutex());
    RETURN_IF_ERROR(check());
    ASSIGN_OR_RETURN(const StoreUsage usage, StoreUsage::Load(catalog.store()));
    const uint32_t index = usage.FindModel(name);
    if (index == StoreUsage::kMissing) return Internal("the model '" + name + "' is listed under another name");
    const ModelLoss loss = LossOf(usage, index);
    ASSIGN_OR_RETURN(const std::set<std::string> dependents, ConfirmDependents(catalog.store(), usage, index, loss));
    if (!dependents.empty()) return RefuseFor(name, usage, dependents, may_see);

    const ModelRecord& model = usage.models()[index].record;
    report.models = {name};
    report.freed_bytes = loss.freed_bytes;
    if (dry_run) return report;

    ASSIGN_OR_RETURN(CatalogMeta meta, catalog.Meta());
    WriteBatch batch;
    RETURN_IF_ERROR(RetireSketches(catalog.store(), usage, model, loss, &batch));
    RETURN_IF_ERROR(NoteInFolders(catalog.store(), name, "", &batch));
    Catalog::AddChange(&model, nullptr, &meta, &batch);
    RETURN_IF_ERROR(catalog.WriteChange(&model, nullptr, batch));
    notice.Published();
    publish.Unlock();  // nobody waits for a client to take a warning
    LeaveTheLog(catalog.store(), "'" + name + "' is removed", job);
  }
  return report;
}

Status Rename(Catalog& catalog, const std::string& from, const std::string& to, JobControl& job,
              const ModelCheck& may_change) {
  RETURN_IF_ERROR(CheckModelName(to));
  ChangeNotice notice(catalog, {from, to});
  {
    MutexLock publish(catalog.publish_mutex());
    ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(from));
    if (may_change) RETURN_IF_ERROR(may_change(model));
    if (from == to) return AlreadyExists("the model is named '" + to + "' already");
    RETURN_IF_ERROR(CheckNameIsFree(catalog.store(), to, from));
    ASSIGN_OR_RETURN(CatalogMeta meta, catalog.Meta());
    WriteBatch batch;
    RETURN_IF_ERROR(NoteInFolders(catalog.store(), from, to, &batch));
    ModelRecord renamed = model;
    renamed.name = to;
    Catalog::AddChange(&model, &renamed, &meta, &batch);
    RETURN_IF_ERROR(catalog.WriteChange(&model, &renamed, batch));
    notice.Published();
    publish.Unlock();
    LeaveTheLog(catalog.store(), "'" + from + "' is renamed to '" + to + "'", job);
  }
  return OkStatus();
}

}  // namespace modelstore
