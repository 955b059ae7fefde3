#include "daemon/service/peer.h"

#include <grp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <vector>

namespace modelstore {
namespace {

Result<std::vector<gid_t>> GroupsOf(int socket) {
  std::vector<gid_t> groups(64);
  for (;;) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    const int error = getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0 ? 0 : errno;
    if (error != 0 && error != ERANGE) return StatusFromErrno(error, "asking for the groups of a client");
    groups.resize(bytes / sizeof(gid_t));  // ERANGE says how many there are
    if (error == 0) return groups;
  }
}

Result<std::optional<gid_t>> IdOfGroup(const std::string& name) {
  std::vector<char> buffer(1 << 12);
  for (;;) {
    group entry{};
    group* found = nullptr;
    const int error = getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (error == ERANGE && buffer.size() < (64u << 20)) {
      buffer.resize(2 * buffer.size());
      continue;
    }
    // Several errors mean that there is no such group.
    if (found == nullptr) return std::optional<gid_t>();
    return std::optional<gid_t>(found->gr_gid);
  }
}

}  // namespace

Result<Caller> CallerOf(int socket, const std::string& group) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0)
    return StatusFromErrno(errno, "asking who a client is");
  Caller caller;
  caller.uid = credentials.uid;
  caller.gid = credentials.gid;
  ASSIGN_OR_RETURN(caller.groups, GroupsOf(socket));
  caller.administrator = caller.uid == 0 || caller.Is(geteuid());
  ASSIGN_OR_RETURN(const std::optional<gid_t> members, IdOfGroup(group));
  caller.may_push = caller.administrator || (members && caller.IsIn(*members));
  return caller;
}

}  // namespace modelstore
