#include "daemon/handlers/caller.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "catalog/read/catalog.h"

namespace modelstore {

Caller Caller::InProcess() {
  Caller caller;
  caller.uid = geteuid();
  caller.gid = getegid();
  caller.administrator = true;
  caller.may_push = true;
  return caller;
}

bool Caller::IsIn(gid_t group) const {
  return gid == group || std::find(groups.begin(), groups.end(), group) != groups.end();
}

bool Caller::MayReadFile(const ModelRecord& model, const ModelFile& file) const {
  if (administrator) return true;
  if (uid == model.owner_uid) return (file.mode & S_IRUSR) != 0;
  if (IsIn(file.gid)) return (file.mode & S_IRGRP) != 0;
  return (file.mode & S_IROTH) != 0;
}

bool Caller::MaySee(const ModelRecord& model) const {
  if (MayChange(model) || model.files.empty()) return true;
  return std::any_of(model.files.begin(), model.files.end(),
                     [&](const ModelFile& file) { return MayReadFile(model, file); });
}

bool Caller::MayChange(const ModelRecord& model) const { return administrator || uid == model.owner_uid; }

Status Caller::CheckMayPush() const {
  if (may_push) return OkStatus();
  return PermissionDenied(
      "only root and members of the daemon's group (modelstore, unless configured otherwise) may "
      "change the store; as root: usermod -aG modelstore USER, then log in again");
}

Status Caller::CheckMaySee(const ModelRecord& model) const {
  return MaySee(model) ? OkStatus() : NoModelNamed(model.name);
}

Status Caller::CheckMayChange(const ModelRecord& model) const {
  RETURN_IF_ERROR(CheckMaySee(model));
  if (MayChange(model)) return OkStatus();
  return PermissionDenied("'" + model.name + "' belongs to the user with id " + std::to_string(model.owner_uid) +
                          ": only that user and root may change it");
}

}  // namespace modelstore
