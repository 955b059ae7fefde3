// Who asks, and what that lets them do (layer: daemon/handlers). Values; thread-safe.
//
// In process (`--store DIR`) the caller is the process itself: what it may do, the file system has decided. Behind the
// socket it is whoever the kernel says is at the other end, with all groups, not only the primary one.
#pragma once

#include <string_view>

#include "catalog/schema/access.h"
#include "catalog/schema/records.h"
#include "codec/support/status.h"

namespace modelstore {

struct Caller : Identity {
  bool administrator = false;  // root, the user that the daemon runs as, or in process: everything
  bool may_push = false;       // administrators and members of the daemon's group

  static Caller InProcess();  // administrator, with the process's effective ids

  // As catalog/schema/access.h; an administrator everything.
  bool MayReadFile(const ModelRecord& model, const ModelFile& file) const;
  bool MaySee(const ModelRecord& model) const;
  // Rename, remove, replace: the owner and administrators.
  bool MayChange(const ModelRecord& model) const;

  // Errors: PermissionDenied naming what is missing and who has it.
  Status CheckMayPush() const;
  // A model that the caller may not see is answered like one that does not exist (NotFound).
  Status CheckMaySee(const ModelRecord& model) const;
  // `allowed`: what who may read all files of the model may do with it.
  Status CheckMayReadAll(const ModelRecord& model, std::string_view allowed) const;
  Status CheckMayChange(const ModelRecord& model) const;
};

}  // namespace modelstore
