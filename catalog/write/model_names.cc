#include "catalog/write/model_names.h"

#include <set>

#include "catalog/schema/folder_record.h"
#include "codec/support/clock.h"

namespace modelstore {

Status CheckNameIsFree(const KvReader& store, const std::string& name, const std::string& leaving) {
  for (size_t end = name.find('/');; end = name.find('/', end + 1)) {
    const std::string taken = name.substr(0, end);
    if (taken != leaving) {
      const Result<StoredValue> found = store.Get(Family::kModels, taken);
      if (found.ok() && taken == name)
        return AlreadyExists("a model named '" + name +
                             "' exists; choose another name, remove it with rm, or replace it with push --update");
      if (found.ok())
        return AlreadyExists("'" + name + "' would lie inside the model '" + taken + "'; choose another name");
      if (found.status().code() != StatusCode::kNotFound) return found.status();
    }
    if (end == std::string::npos) break;
  }
  return store.ScanKeys(Family::kModels, name + "/", [&](std::string_view key) {
    if (key == leaving) return OkStatus();
    // Which one, not everybody may know.
    return AlreadyExists("'" + name + "' is a folder of other models; choose another name");
  });
}

namespace {

// Whether a model other than `name` is in the folder, or anywhere below it.
Result<bool> HoldsOthers(const KvStore& store, const std::string& folder, const std::string& name) {
  bool found = false;
  const Status scanned = store.ScanKeys(Family::kModels, folder + "/", [&](std::string_view key) {
    if (key == name) return OkStatus();
    found = true;
    return Cancelled("one is enough");
  });
  if (!scanned.ok() && !found) return scanned;
  return found;
}

}  // namespace

Status NoteInFolders(const KvStore& store, const std::string& name, const std::string& to, WriteBatch* batch) {
  const Bytes now = Serialize(FolderRecord{.changed_ns = WallClockNs()});
  std::set<std::string> folders;
  for (const std::string& folder : FoldersAbove(name)) folders.insert(folder);
  if (!to.empty())
    for (const std::string& folder : FoldersAbove(to)) folders.insert(folder);
  for (const std::string& folder : folders) {
    bool stays = folder.empty() || (!to.empty() && to.starts_with(folder + "/"));
    if (!stays) {
      ASSIGN_OR_RETURN(stays, HoldsOthers(store, folder, name));
    }
    if (stays) {
      batch->Put(Family::kMeta, FolderKey(folder), now);
    } else {
      batch->Delete(Family::kMeta, FolderKey(folder));
    }
  }
  return OkStatus();
}

}  // namespace modelstore
