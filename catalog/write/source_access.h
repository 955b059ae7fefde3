// Who may read a source file, beside whoever pushes it (layer: catalog/write; private). Values; thread-safe.
//
// A stored file has a mode and a group, no more. What keeps somebody from the source keeps the same people from its
// mode here: the folders that lead to it, and POSIX access control lists. What only an access control list grants is
// not kept: a mode cannot say it.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/support/user_namespace.h"

namespace modelstore {

// What one file or folder lets its group and others do.
class InodeAccess {
 public:
  // Of an open file or folder. Errors: Io.
  static Result<InodeAccess> Of(int fd);
  // By the mode, and the value of system.posix_acl_access if there is one ("" otherwise). A list that is not understood
  // lets nobody in. Ids are those that the user namespace shows. A group without one there equals none: what it may
  // counts for the others, and its members are taken for some of them. A user without one may be anybody.
  InodeAccess(const struct stat& st, ByteSpan access_list, const UserNamespace& ids = UserNamespace::Own());
  // Lets nobody in.
  static InodeAccess Closed() { return {}; }

  // Whether everybody whom a file of `group` takes for a member of its group, or for one of the others, has the
  // permission `bit` (4 read, 1 execute or search). Users and other groups that are named with less count as both.
  bool GroupHas(gid_t group, uint32_t bit) const;
  bool OthersHave(gid_t group, uint32_t bit) const;
  // The names in this folder become names that all see who may enter it: it lets through only whom it lets list them.
  void MarkListed() { through_ |= 4; }
  // The permissions that are needed to get through this folder.
  uint32_t through() const { return through_; }
  bool IsOf(const struct stat& st) const { return st.st_dev == device_ && st.st_ino == inode_; }

 private:
  struct Named {
    gid_t group;  // kNoGroup: not known which
    uint32_t bits;
  };
  static constexpr gid_t kNoGroup = UINT32_MAX;

  InodeAccess() = default;

  dev_t device_ = 0;
  ino_t inode_ = 0;
  uint32_t others_ = 0;
  uint32_t through_ = 1;
  uint32_t all_users_ = 0;     // what every user named has
  std::vector<Named> groups_;  // the owning one, then those named
};

// The folder open as `folder` and all above it, up to the root. One above that may not be looked at lets nobody in.
// Errors: Io.
Result<std::vector<InodeAccess>> FoldersFrom(int folder);
// The folders that the open file `file` lies in, by the name that it was opened by or has got since. One that lets
// nobody in when it has no such name or that may not be looked at. Errors: Io.
Result<std::vector<InodeAccess>> FoldersOf(int file, const std::string& shown);

// The mode to store: read and execute bits of the owner as they are, those of the group and of others where `folders`
// let them through as well.
uint32_t EffectiveMode(const struct stat& st, const InodeAccess& file, std::span<const InodeAccess> folders);

}  // namespace modelstore
