#include "fuse/mount_table.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>

extern char** environ;

namespace modelstore {
namespace {

// mountinfo writes blanks, tabs, newlines and backslashes as \ooo.
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, value, 8).ptr == text.data() + i + 4) {
      out.push_back(static_cast<char>(value));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string BdiFile(const MountEntry& entry) {
  return "/sys/class/bdi/" + std::to_string(entry.device_major) + ":" + std::to_string(entry.device_minor) +
         "/read_ahead_kb";
}

}  // namespace

std::vector<MountEntry> ParseMountInfo(std::string_view text) {
  std::vector<MountEntry> entries;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    // 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda1 rw
    std::istringstream fields(line);
    std::string id, parent, device, root, mountpoint, field, type;
    fields >> id >> parent >> device >> root >> mountpoint;
    while (fields >> field && field != "-") {
    }
    if (!(fields >> type)) continue;
    MountEntry entry{Unescape(mountpoint), Unescape(type)};
    const char* end = device.data() + device.size();
    const auto major_end = std::from_chars(device.data(), end, entry.device_major);
    if (major_end.ec != std::errc() || major_end.ptr == end || *major_end.ptr != ':') continue;
    if (std::from_chars(major_end.ptr + 1, end, entry.device_minor).ptr != end) continue;
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::optional<MountEntry>> FindMount(const std::string& mountpoint) {
  std::ifstream file("/proc/self/mountinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file || text.empty()) return IoError("reading /proc/self/mountinfo: is /proc mounted?");
  std::optional<MountEntry> found;
  for (MountEntry& entry : ParseMountInfo(text))
    if (entry.mountpoint == mountpoint) found = std::move(entry);  // later lines are mounted on top
  return found;
}

Result<std::string> ResolveMountpoint(const std::string& path) {
  if (path.empty()) return InvalidArgument("the mount point is an empty path");
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
  if (real) return std::string(real.get());
  const int error = errno;
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
  const size_t slash = trimmed.rfind('/');
  const std::string last = slash == std::string::npos ? trimmed : trimmed.substr(slash + 1);
  if ((error != ENOENT && error != ENOTCONN) || last.empty() || last == "." || last == "..")
    return StatusFromErrno(error, "resolving " + path);
  char link[PATH_MAX];
  if (error == ENOENT && ::readlink(trimmed.c_str(), link, sizeof(link)) >= 0)
    return NotFound("resolving " + path + ": the link leads nowhere");
  const std::string above = slash == std::string::npos ? "." : slash == 0 ? "/" : trimmed.substr(0, slash);
  const Result<std::string> parent = ResolveMountpoint(above);
  if (!parent.ok()) return parent.status();
  return *parent == "/" ? "/" + last : *parent + "/" + last;
}

bool IsDead(const std::string& mountpoint) {
  // statfs always asks the server; stat may be answered from the kernel's copy of the attributes.
  struct statfs info;
  return ::statfs(mountpoint.c_str(), &info) != 0 && (errno == ENOTCONN || errno == ECONNABORTED);
}

Status DetachMount(const std::string& mountpoint, bool lazy) {
  if (::geteuid() == 0) {
    if (::umount2(mountpoint.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) return OkStatus();
    if (errno == EBUSY) return Busy("unmounting " + mountpoint + ": files on it are open; close them and try again");
    return StatusFromErrno(errno, "unmounting " + mountpoint);
  }
  const char* argv[] = {"fusermount3", "-u", "-q", lazy ? "-z" : "--", mountpoint.c_str(), nullptr};
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, argv[0], nullptr, nullptr, const_cast<char* const*>(argv), environ);
  if (error == ENOENT) return Unavailable("unmounting " + mountpoint + ": fusermount3 is missing; install fuse3");
  if (error != 0) return StatusFromErrno(error, "starting fusermount3");
  int wait_status = 0;
  while (::waitpid(pid, &wait_status, 0) < 0)
    if (errno != EINTR) return StatusFromErrno(errno, "waiting for fusermount3");
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return OkStatus();
  // It says why only in words; of the reasons left here, open files are the usual one.
  return Busy("unmounting " + mountpoint +
              ": fusermount3 refused; close the files that are open on it, or unmount it as the user who mounted it");
}

uint32_t SetReadAhead(const MountEntry& entry, uint32_t read_ahead_kb) {
  const std::string path = BdiFile(entry);
  if (const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC); fd >= 0) {
    const std::string text = std::to_string(read_ahead_kb);
    if (::write(fd, text.data(), text.size()) < 0) {
      // Reported through what is read back below.
    }
    ::close(fd);
  }
  uint32_t in_force = 0;
  std::ifstream file(path);
  return file >> in_force ? in_force : 0;
}

}  // namespace modelstore
