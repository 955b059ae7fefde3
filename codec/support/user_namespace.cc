#include "codec/support/user_namespace.h"

#include <unistd.h>

#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace modelstore {
namespace {

// What overflow ids are unless the administrator has changed it.
constexpr uint32_t kUsualOverflow = 65534;

// "" when it cannot be read.
std::string TextOf(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool LeavesNobodyOut(std::string_view map) {
  std::istringstream words{std::string(map)};
  const std::vector<std::string> all(std::istream_iterator<std::string>(words), {});
  return all == std::vector<std::string>{"0", "0", "4294967295"};
}

std::optional<uint32_t> OverflowOf(std::string_view map, std::string_view overflow) {
  if (LeavesNobodyOut(map)) return std::nullopt;
  uint32_t id = 0;
  const auto [end, error] = std::from_chars(overflow.data(), overflow.data() + overflow.size(), id);
  return error == std::errc() && end != overflow.data() ? id : kUsualOverflow;
}

UserNamespace ReadOwn() {
  // A kernel without user namespaces.
  if (access("/proc/self/ns", F_OK) == 0 && access("/proc/self/ns/user", F_OK) != 0) return {};
  return {TextOf("/proc/self/uid_map"), TextOf("/proc/self/gid_map"), TextOf("/proc/sys/kernel/overflowuid"),
          TextOf("/proc/sys/kernel/overflowgid")};
}

}  // namespace

const UserNamespace& UserNamespace::Own() {
  static const UserNamespace own = ReadOwn();
  return own;
}

UserNamespace::UserNamespace(std::string_view user_map, std::string_view group_map, std::string_view overflow_user,
                             std::string_view overflow_group)
    : overflow_user_(OverflowOf(user_map, overflow_user)), overflow_group_(OverflowOf(group_map, overflow_group)) {}

}  // namespace modelstore
