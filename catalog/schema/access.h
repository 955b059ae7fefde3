// Who may read a stored file and see a model, for the mount and the handlers alike (layer: catalog/schema). Values;
// thread-safe.
#pragma once

#include <sys/types.h>

#include <vector>

#include "catalog/schema/records.h"
#include "codec/support/user_namespace.h"

namespace modelstore {

// Ids are those that the user namespace `ids` shows: who has none there is neither the owner of anything nor in a
// group.
struct Identity {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;  // supplementary ones
  UserNamespace ids = UserNamespace::Own();

  bool Is(uid_t user) const { return ids.SameUser(uid, user); }
  bool IsIn(gid_t group) const;
};

// As the kernel decides on the mounted file: owner, group or others by the mode.
bool MayReadFile(const Identity& who, const ModelRecord& model, const ModelFile& file);
// May know that the model exists and what it is: its owner, and who may read at least one of its files (of a model
// without files: everyone).
bool MaySeeModel(const Identity& who, const ModelRecord& model);

}  // namespace modelstore
