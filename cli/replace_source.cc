#include "cli/replace_source.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <utility>
#include <vector>

#include "catalog/write/source_reader.h"
#include "catalog/write/source_stat.h"
#include "codec/support/bytes.h"
#include "codec/support/files.h"
#include "codec/support/hash.h"
#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

constexpr size_t kReadBytes = 1u << 20;

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
Result<UniqueFd> OpenFolder(const std::string& path) {
  UniqueFd at(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!at.ok()) return StatusFromErrno(errno, "opening /");
  for (size_t begin = 1; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    // O_PATH: only the last folder has to be readable, to be synced.
    const int flags = end == path.size() ? O_RDONLY : O_PATH;
    UniqueFd next(openat(at.get(), part.c_str(), flags | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.ok()) return StatusFromErrno(errno, "opening " + path.substr(0, end));
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

// Whether the link may take the file's place: what the file lets others do, its copy on the mount has to let them.
Status CheckReplaceable(const struct stat& st, const SourceFile& file, int fd) {
  if (!S_ISREG(st.st_mode) || st.st_dev != file.device || st.st_ino != file.inode) return Changed();
  if (st.st_nlink != 1)
    return Unsupported("it has " + std::to_string(st.st_nlink) + " names (hard links); replacing one frees nothing");
  if (fgetxattr(fd, "system.posix_acl_access", nullptr, 0) > 0)
    return Unsupported("it has an access control list, which a file of the mount cannot have");
  if (st.st_uid != geteuid() && (file.mode & S_IROTH) == 0)
    return Unsupported("it belongs to the user with id " + std::to_string(st.st_uid) +
                       ", who could not read it on the mount; let that user push it");
  return OkStatus();
}

// Puts the link `temporary` in the place of `name`, and removes what stood there when that is the scanned file.
// Anything else is a newer version that somebody renamed into place just now: it comes back.
Status ExchangeAndRemove(const UniqueFd& folder, const std::string& name, const std::string& temporary,
                         const SourceFile& file, const ReadLease& lease) {
  const auto exchange = [&] {
    if (renameat2(folder.get(), temporary.c_str(), folder.get(), name.c_str(), RENAME_EXCHANGE) == 0) return OkStatus();
    if (IsUnsupportedErrno(errno)) return Unsupported("its file system cannot exchange two names at once");
    return StatusFromErrno(errno, "exchanging it with a link");
  };
  const auto look = [&](struct stat* out) {
    return fstatat(folder.get(), temporary.c_str(), out, AT_SYMLINK_NOFOLLOW) == 0
               ? OkStatus()
               : StatusFromErrno(errno, "looking at " + temporary + " beside it");
  };
  struct stat link, out;
  const auto is_link = [&] { return out.st_dev == link.st_dev && out.st_ino == link.st_ino; };
  const Status seen = look(&link);
  if (const Status ready = seen.ok() ? exchange() : seen; !ready.ok()) {
    unlinkat(folder.get(), temporary.c_str(), 0);
    return ready;
  }
  const std::string where = "it is named " + temporary + " now";
  // The answer is `why`, once everything is as it was.
  const auto put_back = [&](const Status& why) -> Status {
    RETURN_IF_ERROR(exchange().WithContext(where));
    RETURN_IF_ERROR(look(&out).WithContext("the link is left beside it"));
    if (!is_link()) {  // yet another version has replaced the link meanwhile: the newest is the one to stay
      RETURN_IF_ERROR(exchange().WithContext(where));
      return IoError("it changed twice meanwhile; an older version is named " + temporary + " now");
    }
    unlinkat(folder.get(), temporary.c_str(), 0);
    return why;
  };
  if (const Status looked = look(&out); !looked.ok()) return put_back(looked);
  // The exchange itself changes ctime.
  const bool as_scanned = out.st_dev == file.device && out.st_ino == file.inode && out.st_nlink == 1 &&
                          static_cast<uint64_t>(out.st_size) == file.bytes && ModificationTime(out) == file.mtime_ns;
  const Status writer = lease.Check();
  if (!as_scanned) return put_back(Changed());
  if (!writer.ok()) return put_back(writer);
  if (unlinkat(folder.get(), temporary.c_str(), 0) == 0) return OkStatus();
  return StatusFromErrno(errno, "removing what the link replaced, now named " + temporary);
}

Status ReplaceOne(const SourceFile& file, const std::string& model, const MountView& mount, JobControl& job) {
  Result<SourceReader> opened = SourceReader::Open(file);
  if (!opened.ok()) return Changed();
  const SourceReader& reader = *opened;
  const ReadLease lease(reader.descriptor());
  RETURN_IF_ERROR(CompareWithMount(reader, lease, model, mount, job));

  ASSIGN_OR_RETURN(const std::string real, RealPath(file.shown_as));
  const size_t slash = real.rfind('/');
  const std::string name = real.substr(slash + 1);
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(real.substr(0, slash)));
  struct stat st;
  if (fstatat(folder.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0)
    return StatusFromErrno(errno, "reading the attributes of " + real);
  RETURN_IF_ERROR(CheckReplaceable(st, file, reader.descriptor()));

  const std::string target = mount.path() + "/" + model + "/" + file.path;
  ASSIGN_OR_RETURN(const std::string temporary, RandomName(".modelstore-replace-"));
  if (!reader.CheckUnchanged().ok()) return Changed();
  RETURN_IF_ERROR(lease.Check());
  if (symlinkat(target.c_str(), folder.get(), temporary.c_str()) != 0)
    return StatusFromErrno(errno, "creating a link beside it");
  RETURN_IF_ERROR(ExchangeAndRemove(folder, name, temporary, file, lease));
  // The link is in place either way; only a crash of the machine could bring the file back.
  if (fsync(folder.get()) != 0) job.Warn(file.shown_as + " was replaced, but its folder could not be synced");
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
    if (file->device == mount.device()) {
      job.Warn(file->shown_as + " is left as it is: it is on the mount already");
      continue;
    }
    const Status replaced = ReplaceOne(*file, model, mount, job);
    if (replaced.ok()) {
      report.files += 1;
      report.bytes += file->bytes;
    } else if (replaced.code() == StatusCode::kCancelled) {
      return replaced;
    } else {
      report.left.push_back({file->shown_as, std::string(replaced.message())});
      job.Warn(file->shown_as + " is left as it is: " + report.left.back().reason);
    }
  }
  return report;
}

}  // namespace modelstore
