#include "cli/replace_source.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>
#include <utility>
#include <vector>

#include "catalog/write/source_reader.h"
#include "codec/support/bytes.h"
#include "codec/support/hash.h"

namespace modelstore {
namespace {

constexpr size_t kReadBytes = 1u << 20;

class Folder {
 public:
  explicit Folder(int fd) : fd_(fd) {}
  Folder(Folder&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Folder& operator=(Folder&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Folder() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// While it is held, nobody has the file open for writing: who wants to has to wait until it is released, or is noticed.
class ReadLease {
 public:
  explicit ReadLease(int fd) : fd_(fd) {
    // Who asks for the file makes the kernel send this, which would end the process.
    old_handler_ = signal(SIGIO, SIG_IGN);
    error_ = fcntl(fd_, F_SETLEASE, F_RDLCK) == 0 ? 0 : errno;
  }
  ~ReadLease() {
    if (error_ == 0) fcntl(fd_, F_SETLEASE, F_UNLCK);
    signal(SIGIO, old_handler_);
  }
  ReadLease(const ReadLease&) = delete;
  ReadLease& operator=(const ReadLease&) = delete;

  // Busy when somebody writes or wants to. File systems without leases, and files of others, have none: then the times
  // alone tell of a change.
  Status Check() const {
    const bool wanted = error_ == EAGAIN || (error_ == 0 && fcntl(fd_, F_GETLEASE) != F_RDLCK);
    return wanted ? Busy("somebody has it open for writing") : OkStatus();
  }

 private:
  const int fd_;
  int error_ = 0;
  void (*old_handler_)(int) = nullptr;
};

// Walks from the root without following a link: `path` has none, unless somebody puts one there now.
Result<Folder> OpenFolder(const std::string& path) {
  Folder at(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (at.fd() < 0) return StatusFromErrno(errno, "opening /");
  for (size_t begin = 1; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    // O_PATH: only the last folder has to be readable, to be synced.
    const int flags = end == path.size() ? O_RDONLY : O_PATH;
    Folder next(openat(at.fd(), part.c_str(), flags | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (next.fd() < 0) return StatusFromErrno(errno, "opening " + path.substr(0, end));
    at = std::move(next);
    begin = end + 1;
  }
  return at;
}

Result<std::string> RealPath(const std::string& path) {
  char* real = realpath(path.c_str(), nullptr);
  if (real == nullptr) return StatusFromErrno(errno, "following " + path);
  std::string out(real);
  std::free(real);
  return out;
}

Status Changed() { return IoError("it changed since it was stored"); }

Result<std::string> HashOf(const SourceReader& reader, const ReadLease& lease, JobControl& job) {
  Sha256 hasher;
  std::vector<std::byte> buffer(std::min<uint64_t>(reader.file().bytes, kReadBytes));
  for (uint64_t offset = 0; offset < reader.file().bytes;) {
    RETURN_IF_ERROR(job.Check());
    RETURN_IF_ERROR(lease.Check());
    const MutableByteSpan part =
        MutableByteSpan(buffer).first(std::min<uint64_t>(buffer.size(), reader.file().bytes - offset));
    if (!reader.ReadAt(offset, part).ok()) return Changed();
    hasher.Update(part);
    offset += part.size();
    job.Advance(part.size());
  }
  return ToHex(hasher.Finish());
}

// The mounted file has the bytes that the source has.
Status CompareWithMount(const SourceReader& reader, const ReadLease& lease, const std::string& model,
                        const MountView& mount, JobControl& job) {
  ASSIGN_OR_RETURN(const MountedFile mounted, mount.Open(model, reader.file().path));
  ASSIGN_OR_RETURN(const uint64_t bytes, mounted.Bytes());
  ASSIGN_OR_RETURN(const std::string mounted_hash, mounted.Sha256());
  if (bytes != reader.file().bytes) return IoError("the mounted file has another size");
  ASSIGN_OR_RETURN(const std::string hash, HashOf(reader, lease, job));
  if (hash != mounted_hash) return IoError("the mounted file has other content; has somebody replaced the model?");
  return OkStatus();
}

Status ReplaceOne(const SourceFile& file, const std::string& model, const MountView& mount, JobControl& job) {
  if (file.device == mount.device()) return Unsupported("it is on the mount already");
  Result<SourceReader> opened = SourceReader::Open(file);
  if (!opened.ok()) return Changed();
  const SourceReader& reader = *opened;
  const ReadLease lease(reader.descriptor());
  RETURN_IF_ERROR(CompareWithMount(reader, lease, model, mount, job));

  ASSIGN_OR_RETURN(const std::string real, RealPath(file.shown_as));
  const size_t slash = real.rfind('/');
  const std::string name = real.substr(slash + 1);
  ASSIGN_OR_RETURN(const Folder folder, OpenFolder(real.substr(0, slash)));
  struct stat st;
  if (fstatat(folder.fd(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0)
    return StatusFromErrno(errno, "reading the attributes of " + real);
  if (!S_ISREG(st.st_mode) || st.st_dev != file.device || st.st_ino != file.inode) return Changed();
  if (st.st_nlink != 1)
    return Unsupported("it has " + std::to_string(st.st_nlink) + " names (hard links); replacing one frees nothing");

  const std::string target = mount.path() + "/" + model + "/" + file.path;
  const std::string temporary = ".modelstore-replace-" + std::to_string(getpid());
  if (symlinkat(target.c_str(), folder.fd(), temporary.c_str()) != 0)
    return StatusFromErrno(errno, "creating a link beside it");
  const auto replace = [&]() -> Status {
    if (geteuid() == 0 && fchownat(folder.fd(), temporary.c_str(), st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) != 0)
      return StatusFromErrno(errno, "giving the link to the file's owner");
    if (!reader.CheckUnchanged().ok()) return Changed();
    RETURN_IF_ERROR(lease.Check());
    if (renameat(folder.fd(), temporary.c_str(), folder.fd(), name.c_str()) != 0)
      return StatusFromErrno(errno, "putting the link in its place");
    return OkStatus();
  };
  const Status replaced = replace();
  if (!replaced.ok()) {
    unlinkat(folder.fd(), temporary.c_str(), 0);
    return replaced;
  }
  // The link is in place either way; only a crash of the machine could bring the file back.
  if (fsync(folder.fd()) != 0) job.Warn(file.shown_as + " was replaced, but its folder could not be synced");
  return OkStatus();
}

}  // namespace

Result<ReplaceReport> ReplaceSource(const SourceTree& source, const std::string& model, const MountView& mount,
                                    JobControl& job) {
  // Several links may lead to one file.
  std::vector<const SourceFile*> files;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  uint64_t total_bytes = 0;
  for (const SourceFile& file : source.files()) {
    if (!seen.emplace(file.device, file.inode).second) continue;
    files.push_back(&file);
    total_bytes += file.bytes;
  }
  job.Begin("comparing", total_bytes);
  ReplaceReport report;
  for (const SourceFile* file : files) {
    RETURN_IF_ERROR(job.Check());
    const Status replaced = ReplaceOne(*file, model, mount, job);
    if (replaced.ok()) {
      report.files += 1;
      report.bytes += file->bytes;
    } else if (replaced.code() == StatusCode::kCancelled) {
      return replaced;
    } else {
      job.Warn(file->shown_as + " is left as it is: " + std::string(replaced.message()));
    }
  }
  return report;
}

}  // namespace modelstore
