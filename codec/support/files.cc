#include "codec/support/files.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "codec/support/hash.h"

namespace modelstore {
namespace {

bool IsSameFile(int folder, const std::string& a, const std::string& b) {
  struct stat first, second;
  return fstatat(folder, a.c_str(), &first, AT_SYMLINK_NOFOLLOW) == 0 &&
         fstatat(folder, b.c_str(), &second, AT_SYMLINK_NOFOLLOW) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

Status Taken(const std::string& shown) { return AlreadyExists(shown + " exists and is not overwritten"); }

}  // namespace

Status WriteAll(int fd, ByteSpan bytes, std::string_view shown) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return StatusFromErrno(errno, "writing " + std::string(shown));
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return OkStatus();
}

Result<uint64_t> FreeBytes(const std::string& path) {
  struct statvfs system;
  if (statvfs(path.c_str(), &system) != 0) return StatusFromErrno(errno, "asking for the free space of " + path);
  return uint64_t{system.f_bavail} * system.f_frsize;
}

Result<std::string> RandomName(std::string_view prefix) {
  std::array<std::byte, 8> random;
  if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    return StatusFromErrno(errno, "choosing a random name");
  return std::string(prefix) + ToHex(random);
}

Status MakeFolders(const std::string& dir, mode_t mode) {
  for (size_t end = dir.find('/', 1);; end = dir.find('/', end + 1)) {
    const std::string part = dir.substr(0, end);
    struct stat found;
    // Looked at first: making one that is there may be answered by EROFS, or EACCES.
    if (stat(part.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)) {
      if (mkdir(part.c_str(), mode) != 0 && errno != EEXIST)
        return StatusFromErrno(errno, "creating the folder " + part);
    }
    if (end == std::string::npos) return OkStatus();
  }
}

Status SyncFolder(int fd, std::string_view shown) {
  if (fsync(fd) == 0 || IsUnsupportedErrno(errno)) return OkStatus();
  return StatusFromErrno(errno, "syncing " + std::string(shown));
}

Status GiveName(int folder, const std::string& temporary, const std::string& name, const std::string& shown) {
  if (renameat2(folder, temporary.c_str(), folder, name.c_str(), RENAME_NOREPLACE) == 0) return OkStatus();
  if (errno == EEXIST) return Taken(shown);
  if (!IsUnsupportedErrno(errno)) return StatusFromErrno(errno, "creating " + shown);
  // An NFS server that is asked again, because its answer was lost, says EEXIST about the link that it made itself.
  if (linkat(folder, temporary.c_str(), folder, name.c_str(), 0) == 0 ||
      (errno == EEXIST && IsSameFile(folder, temporary, name))) {
    if (unlinkat(folder, temporary.c_str(), 0) == 0) return OkStatus();
    return StatusFromErrno(errno, "removing " + temporary + ", the other name of " + shown);
  }
  if (errno == EEXIST) return Taken(shown);
  if (errno != EPERM && !IsUnsupportedErrno(errno)) return StatusFromErrno(errno, "creating " + shown);
  struct stat found;
  if (fstatat(folder, name.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0) return Taken(shown);
  if (errno == ENOENT && renameat(folder, temporary.c_str(), folder, name.c_str()) == 0) return OkStatus();
  return StatusFromErrno(errno, "creating " + shown);
}

bool IsUnsupportedErrno(int error_number) {
  return error_number == EINVAL || error_number == ENOSYS || error_number == EOPNOTSUPP || error_number == ENOTSUP;
}

Result<std::string> ExpandHome(const std::string& path, const std::string& home) {
  if (!path.starts_with('~')) return path;
  if (path != "~" && !path.starts_with("~/"))
    return InvalidArgument(path + ": other users' folders are not looked up; write the whole path (or ./" + path +
                           " for a folder of that name)");
  if (!home.starts_with('/'))
    return InvalidArgument(path + ": the environment has no HOME that ~ could stand for; write the whole path");
  return home + path.substr(1);
}

}  // namespace modelstore
