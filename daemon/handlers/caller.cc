#include "daemon/handlers/caller.h"

#include <unistd.h>

#include <algorithm>
#include <string>

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

bool Caller::MayReadFile(const ModelRecord& model, const ModelFile& file) const {
  return administrator || modelstore::MayReadFile(*this, model, file);
}

bool Caller::MaySee(const ModelRecord& model) const { return administrator || MaySeeModel(*this, model); }

bool Caller::MayChange(const ModelRecord& model) const { return administrator || Is(model.owner_uid); }

Status Caller::CheckMayPush() const {
  if (may_push) return OkStatus();
  return PermissionDenied(
      "only root and members of the daemon's group (modelstore, unless its configuration names another) may change the "
      "store; as root: usermod -aG GROUP USER, then log in again");
}

Status Caller::CheckMaySee(const ModelRecord& model) const {
  return MaySee(model) ? OkStatus() : NoModelNamed(model.name);
}

Status Caller::CheckMayReadAll(const ModelRecord& model, std::string_view allowed) const {
  RETURN_IF_ERROR(CheckMaySee(model));
  const auto may_read = [&](const ModelFile& file) { return MayReadFile(model, file); };
  if (std::all_of(model.files.begin(), model.files.end(), may_read)) return OkStatus();
  return PermissionDenied("'" + model.name + "' has files that you may not read: " + std::string(allowed));
}

Status Caller::CheckMayChange(const ModelRecord& model) const {
  RETURN_IF_ERROR(CheckMaySee(model));
  if (MayChange(model)) return OkStatus();
  return PermissionDenied("'" + model.name + "' belongs to the user with id " + std::to_string(model.owner_uid) +
                          ": only that user and root may change it");
}

}  // namespace modelstore
