#include "catalog/store/store_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>
#include <vector>

#include "codec/support/files.h"
#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxHolderBytes = 256;
// A push into a full store needs this much to publish, prune to open the store and delete.
constexpr uint64_t kMinBallastBytes = 512 << 10;
constexpr uint64_t kMaxBallastBytes = 8 << 20;
constexpr uint64_t kBallastShare = 256;  // of the store's size

Status FromErrorCode(const std::error_code& ec, const std::string& what) { return StatusFromErrno(ec.value(), what); }

Result<std::set<std::string>> EntriesOf(const std::string& dir) {
  std::set<std::string> names;
  std::error_code ec;
  for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec))
    names.insert(it->path().filename().string());
  if (ec) return FromErrorCode(ec, "listing " + dir);
  return names;
}

Status SyncDir(const std::string& dir) {
  const UniqueFd fd(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return fd.ok() ? SyncFolder(fd.get(), dir) : StatusFromErrno(errno, "opening " + dir);
}

Status NoStore(const std::string& dir, std::string_view why) {
  return NotFound("no store at " + dir + " (" + std::string(why) + "); run push to create one");
}

// What the files already there make of the folder.
Status Recognise(const std::string& dir, const StoreOptions& options, bool* has_db) {
  ASSIGN_OR_RETURN(const std::set<std::string> entries, EntriesOf(dir));
  std::error_code ec;
  *has_db = fs::exists(dir + "/db/CURRENT", ec);
  if (ec) return FromErrorCode(ec, "looking for " + dir + "/db/CURRENT");
  if (*has_db) return OkStatus();
  for (const std::string& name : entries) {
    if (name != "lock" && name != "db" && name != "ballast" && name != "lost+found")
      return InvalidArgument(dir + " is not empty and not a store (it holds " + name +
                             "); name an empty or a new folder");
  }
  if (entries.contains("db")) {
    // A creation that was cut short leaves no data files. With them, this was a store that lost its CURRENT file, and
    // creating one over it would make RocksDB delete them all.
    ASSIGN_OR_RETURN(const std::set<std::string> files, EntriesOf(dir + "/db"));
    for (const std::string& name : files) {
      if (name.ends_with(".sst") || name.ends_with(".blob"))
        return Corruption("store " + dir + ": db/CURRENT is missing beside data files (" + name +
                          "); restore the store from a copy");
    }
  }
  return options.create_if_missing && !options.read_only ? OkStatus() : NoStore(dir, "the folder is empty");
}

Status CreateFolder(const std::string& dir) {
  std::error_code ec;
  const fs::path parent = fs::absolute(dir, ec).parent_path();
  if (!ec) fs::create_directories(parent, ec);
  if (ec) return FromErrorCode(ec, "creating " + parent.string());
  if (::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) return StatusFromErrno(errno, "creating " + dir);
  return SyncDir(parent.string());
}

// "pid command" of this process, for whoever finds the lock taken.
std::string DescribeSelf() {
  std::string command;
  if (const UniqueFd fd(::open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC)); fd.ok()) {
    std::array<char, kMaxHolderBytes> buffer{};
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n > 0) command.assign(buffer.data(), static_cast<size_t>(n));
  }
  while (!command.empty() && command.back() == '\0') command.pop_back();
  for (char& c : command)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return std::to_string(::getpid()) + " " + command + "\n";
}

std::string DescribeHolder(int fd) {
  std::array<char, kMaxHolderBytes + 32> buffer{};
  const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), 0);
  std::string_view line(buffer.data(), n > 0 ? static_cast<size_t>(n) : 0);
  line = line.substr(0, line.find('\n'));
  const size_t space = line.find(' ');
  if (line.empty() || space == std::string_view::npos) return "another process";
  return "process " + std::string(line.substr(0, space)) + " (" + std::string(line.substr(space + 1)) + ")";
}

// The locked descriptor; none when the file system is read-only and has no lock file.
Result<UniqueFd> TakeLock(const std::string& dir, bool read_only) {
  const std::string path = dir + "/lock";
  const int flags = read_only ? O_RDONLY : O_RDWR | O_CREAT;
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
  if (!fd.ok() && read_only && errno == ENOENT) return UniqueFd();
  if (!fd.ok()) return StatusFromErrno(errno, "opening " + path);
  if (::flock(fd.get(), (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return StatusFromErrno(errno, "locking " + path);
    return Locked("store " + dir + " is in use by " + DescribeHolder(fd.get()) + "; stop it or wait for it");
  }
  if (!read_only) {
    // Only a description: a full disk must not keep the store from opening.
    const std::string self = DescribeSelf();
    if (::pwrite(fd.get(), self.data(), self.size(), 0) == static_cast<ssize_t>(self.size()))
      (void)!::ftruncate(fd.get(), static_cast<off_t>(self.size()));
  }
  return fd;
}

}  // namespace

Result<std::unique_ptr<StoreFolder>> StoreFolder::Open(const std::string& dir, const StoreOptions& options) {
  std::error_code ec;
  const fs::file_status found = fs::status(dir, ec);
  if (found.type() == fs::file_type::not_found) {
    if (!options.create_if_missing || options.read_only) return NoStore(dir, "the folder does not exist");
    RETURN_IF_ERROR(CreateFolder(dir));
  } else if (ec) {
    return FromErrorCode(ec, "opening store " + dir);
  } else if (found.type() != fs::file_type::directory) {
    return InvalidArgument(dir + " is not a folder; a store needs one");
  }
  // Before the lock, so that a folder that is not ours gets no file; and after, because another process may just have
  // finished creating.
  bool has_db = false;
  RETURN_IF_ERROR(Recognise(dir, options, &has_db));
  ASSIGN_OR_RETURN(UniqueFd lock, TakeLock(dir, options.read_only));
  std::unique_ptr<StoreFolder> folder(new StoreFolder(dir, std::move(lock)));
  RETURN_IF_ERROR(Recognise(dir, options, &folder->has_db_));
  if (!folder->has_db_) {
    if (::mkdir(folder->db_dir().c_str(), 0700) != 0 && errno != EEXIST)
      return StatusFromErrno(errno, "creating " + folder->db_dir());
    RETURN_IF_ERROR(SyncDir(dir));
  }
  return folder;
}

Result<uint64_t> StoreFolder::DiskBytes() const {
  uint64_t bytes = 0;
  std::error_code ec;
  const auto add = [&bytes](const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) == 0) bytes += static_cast<uint64_t>(st.st_blocks) * 512;
  };
  add(dir_);
  for (fs::recursive_directory_iterator it(dir_, ec), end; !ec && it != end; it.increment(ec)) add(it->path().string());
  // RocksDB deletes files while we look.
  if (ec && ec != std::errc::no_such_file_or_directory) return FromErrorCode(ec, "listing " + dir_);
  return bytes;
}

Result<uint64_t> StoreFolder::FreeBytes() const { return modelstore::FreeBytes(dir_); }

void StoreFolder::RefillBallast() {
  const auto disk_bytes = DiskBytes();
  const auto free_bytes = FreeBytes();
  if (!disk_bytes.ok() || !free_bytes.ok()) return;
  const uint64_t wanted = std::clamp(*disk_bytes / kBallastShare, kMinBallastBytes, kMaxBallastBytes);
  if (*free_bytes / 4 < wanted) return;
  const MutexLock lock(ballast_mutex_);
  const UniqueFd fd(::open(ballast_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  struct stat st {};
  // Grows only: shrinking would save nothing worth a write.
  if (fd.ok() && ::fstat(fd.get(), &st) == 0 && static_cast<uint64_t>(st.st_blocks) * 512 < wanted &&
      ::posix_fallocate(fd.get(), 0, static_cast<off_t>(wanted)) != 0)
    (void)!::ftruncate(fd.get(), 0);
}

bool StoreFolder::ReleaseBallast() {
  const MutexLock lock(ballast_mutex_);
  struct stat st {};
  return ::stat(ballast_path_.c_str(), &st) == 0 && st.st_blocks > 0 && ::truncate(ballast_path_.c_str(), 0) == 0;
}

}  // namespace modelstore
