// Which user and group ids mean one user or group each (layer: codec/support). Values; thread-safe.
//
// In a user namespace (rootless containers, `unshare -Ur`) the kernel shows every user and group that has no id there
// by one and the same overflow id, or by -1: two of them that look equal need not be.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace modelstore {

class UserNamespace {
 public:
  // That of the process, as it was when first asked for.
  static const UserNamespace& Own();
  // One in which all ids have a meaning, as in the machine's initial one.
  UserNamespace() = default;
  // By the texts of uid_map and gid_map in /proc/self, and of overflowuid and overflowgid in /proc/sys/kernel. A map
  // that is not understood leaves the overflow id without a meaning.
  UserNamespace(std::string_view user_map, std::string_view group_map, std::string_view overflow_user,
                std::string_view overflow_group);

  // All ids have a meaning, the same as for everybody else whose ids all have one.
  bool is_whole() const { return !overflow_user_ && !overflow_group_; }
  // Both ids are certainly those of one user, or of one group.
  bool SameUser(uid_t a, uid_t b) const { return a == b && Means(a, overflow_user_); }
  bool SameGroup(gid_t a, gid_t b) const { return a == b && Means(a, overflow_group_); }

 private:
  static bool Means(uint32_t id, const std::optional<uint32_t>& overflow) { return id != UINT32_MAX && id != overflow; }

  std::optional<uint32_t> overflow_user_, overflow_group_;  // empty where the map leaves nobody out
};

}  // namespace modelstore
