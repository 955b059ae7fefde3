#include "catalog/write/source_access.h"

#include <endian.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

constexpr const char* kAccessList = "system.posix_acl_access";
// linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
constexpr uint32_t kListVersion = 2;
constexpr size_t kListHeaderBytes = 4, kListEntryBytes = 8;
enum Tag : uint16_t { kOwner = 0x01, kUser = 0x02, kOwningGroup = 0x04, kGroup = 0x08, kMask = 0x10, kOthers = 0x20 };
constexpr uint32_t kAllBits = 7;

std::string NameOf(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

ssize_t ReadAccessList(int fd, Bytes* list) {
  const ssize_t n = fgetxattr(fd, kAccessList, list->data(), list->size());
  if (n >= 0 || errno != EBADF) return n;
  return getxattr(NameOf(fd).c_str(), kAccessList, list->data(), list->size());  // an O_PATH descriptor
}

// Empty where there is none.
Result<Bytes> AccessListOf(int fd) {
  Bytes list(256);
  for (;;) {
    const ssize_t n = ReadAccessList(fd, &list);
    if (n >= 0) {
      list.resize(static_cast<size_t>(n));
      return list;
    }
    if (errno == ENODATA || errno == EOPNOTSUPP) return Bytes();
    if (errno != ERANGE || list.size() >= XATTR_SIZE_MAX)
      return StatusFromErrno(errno, "reading an access control list");
    list.resize(XATTR_SIZE_MAX);
  }
}

struct ListEntry {
  uint16_t tag, bits;
  uint32_t id;
};

// Empty when the list is not understood.
std::vector<ListEntry> Entries(ByteSpan list) {
  uint32_t version = 0;
  if (list.size() < kListHeaderBytes || (list.size() - kListHeaderBytes) % kListEntryBytes != 0) return {};
  std::memcpy(&version, list.data(), sizeof version);
  if (le32toh(version) != kListVersion) return {};
  std::vector<ListEntry> entries;
  for (size_t at = kListHeaderBytes; at < list.size(); at += kListEntryBytes) {
    ListEntry entry{};
    std::memcpy(&entry.tag, list.data() + at, sizeof entry.tag);
    std::memcpy(&entry.bits, list.data() + at + 2, sizeof entry.bits);
    std::memcpy(&entry.id, list.data() + at + 4, sizeof entry.id);
    entries.push_back({le16toh(entry.tag), le16toh(entry.bits), le32toh(entry.id)});
  }
  return entries;
}

}  // namespace

InodeAccess::InodeAccess(const struct stat& st, ByteSpan access_list, const UserNamespace& ids)
    : device_(st.st_dev), inode_(st.st_ino) {
  const auto known = [&](gid_t group) { return ids.SameGroup(group, group) ? group : kNoGroup; };
  if (access_list.empty()) {
    others_ = st.st_mode & kAllBits;
    all_users_ = kAllBits;
    groups_.push_back({known(st.st_gid), (st.st_mode >> 3) & kAllBits});
    return;
  }
  const std::vector<ListEntry> entries = Entries(access_list);
  if (entries.empty()) return;
  // The group bits of the mode of what has a list are its mask.
  uint32_t mask = kAllBits;
  for (const ListEntry& entry : entries)
    if (entry.tag == kMask) mask = entry.bits;
  all_users_ = kAllBits;
  for (const ListEntry& entry : entries) {
    if (entry.tag == kOthers) others_ = entry.bits & kAllBits;
    // The owner is who the owner's entry speaks of, root is let in by nothing that is written here; the user 0 of
    // another namespace than the machine's is an ordinary one.
    const bool is_root = entry.id == 0 && ids.is_whole();
    if (entry.tag == kUser && !ids.SameUser(entry.id, st.st_uid) && !is_root) all_users_ &= entry.bits & mask;
    if (entry.tag == kOwningGroup) groups_.push_back({known(st.st_gid), entry.bits & mask & kAllBits});
    if (entry.tag == kGroup) groups_.push_back({known(entry.id), entry.bits & mask & kAllBits});
  }
}

Result<InodeAccess> InodeAccess::Of(int fd) {
  struct stat st;
  if (fstat(fd, &st) != 0) return StatusFromErrno(errno, "reading attributes");
  ASSIGN_OR_RETURN(const Bytes list, AccessListOf(fd));
  return InodeAccess(st, list);
}

bool InodeAccess::GroupHas(gid_t group, uint32_t bit) const {
  if ((all_users_ & bit) == 0) return false;
  // Of the groups somebody is in, one that has the bit suffices; who is in none of them is one of the others.
  const auto is_it = [&](const Named& named) { return named.group == group && group != kNoGroup; };
  if (std::any_of(groups_.begin(), groups_.end(), is_it))
    return std::any_of(groups_.begin(), groups_.end(),
                       [&](const Named& named) { return is_it(named) && (named.bits & bit) != 0; });
  return OthersHave(group, bit);
}

bool InodeAccess::OthersHave(gid_t group, uint32_t bit) const {
  return (others_ & all_users_ & bit) != 0 && std::all_of(groups_.begin(), groups_.end(), [&](const Named& named) {
           return (named.group == group && group != kNoGroup) || (named.bits & bit) != 0;
         });
}

Result<std::vector<InodeAccess>> FoldersFrom(int folder) {
  std::vector<InodeAccess> folders;
  UniqueFd at(openat(folder, ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (at.get() < 0) return StatusFromErrno(errno, "opening it");
  for (;;) {
    struct stat here, above;
    if (fstat(at.get(), &here) != 0) return StatusFromErrno(errno, "reading the attributes of a folder above it");
    ASSIGN_OR_RETURN(const Bytes list, AccessListOf(at.get()));
    folders.emplace_back(here, list);
    UniqueFd parent(openat(at.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (parent.get() < 0) {
      if (errno != EACCES) return StatusFromErrno(errno, "opening a folder above it");
      folders.push_back(InodeAccess::Closed());
      return folders;
    }
    if (fstat(parent.get(), &above) != 0) return StatusFromErrno(errno, "reading the attributes of a folder above it");
    if (above.st_dev == here.st_dev && above.st_ino == here.st_ino) return folders;
    at = std::move(parent);
  }
}

Result<std::vector<InodeAccess>> FoldersOf(int file, const std::string& shown) {
  char path[PATH_MAX];
  const ssize_t n = readlink(NameOf(file).c_str(), path, sizeof path);
  struct stat st, named;
  if (n < 0 || fstat(file, &st) != 0) return StatusFromErrno(errno, "finding the folder of " + shown);
  const std::string_view real(path, static_cast<size_t>(n));
  const size_t slash = real.rfind('/');
  if (!real.starts_with('/')) return std::vector<InodeAccess>{InodeAccess::Closed()};
  const std::string above(real.substr(0, std::max<size_t>(slash, 1))), name(real.substr(slash + 1));
  const UniqueFd folder(open(above.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder.ok() || fstatat(folder.get(), name.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0 ||
      named.st_dev != st.st_dev || named.st_ino != st.st_ino)
    return std::vector<InodeAccess>{InodeAccess::Closed()};
  Result<std::vector<InodeAccess>> folders = FoldersFrom(folder.get());
  if (!folders.ok()) return folders.status().WithContext(shown);
  return folders;
}

uint32_t EffectiveMode(const struct stat& st, const InodeAccess& file, std::span<const InodeAccess> folders) {
  constexpr uint32_t kRead = 4, kExecute = 1;
  const auto all = [&](auto has) {
    return std::all_of(folders.begin(), folders.end(), [&](const InodeAccess& folder) {
      return std::ranges::all_of(std::array{kRead, kExecute},
                                 [&](uint32_t bit) { return (folder.through() & bit) == 0 || has(folder, bit); });
    });
  };
  const auto group = [&](const InodeAccess& access, uint32_t bit) { return access.GroupHas(st.st_gid, bit); };
  const auto others = [&](const InodeAccess& access, uint32_t bit) { return access.OthersHave(st.st_gid, bit); };
  const bool group_gets_there = all(group), others_get_there = all(others);
  uint32_t mode = st.st_mode & 0500;
  for (const uint32_t bit : {kRead, kExecute}) {
    if (group_gets_there && group(file, bit)) mode |= bit << 3;
    if (others_get_there && others(file, bit)) mode |= bit;
  }
  return mode;
}

}  // namespace modelstore
