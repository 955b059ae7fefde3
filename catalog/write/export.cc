#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <string_view>
#include <utility>

#include "catalog/write/file_reader.h"
#include "catalog/write/maintain.h"

namespace modelstore {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Status MakeFolders(const std::string& dir) {
  for (size_t end = dir.find('/', 1);; end = dir.find('/', end + 1)) {
    const std::string part = dir.substr(0, end);
    if (mkdir(part.c_str(), 0777) != 0 && errno != EEXIST) return StatusFromErrno(errno, "creating the folder " + part);
    if (end == std::string::npos) return OkStatus();
  }
}

// Walks from `root` to the folder of `path` without following links; creates what is missing when `create`.
// NotFound when a part is missing.
Result<Descriptor> OpenParent(int root, const std::string& path, const std::string& shown, bool create) {
  Descriptor at(openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (at.get() < 0) return StatusFromErrno(errno, "opening " + shown);
  size_t begin = 0;
  for (size_t end = path.find('/'); end != std::string::npos; begin = end + 1, end = path.find('/', begin)) {
    const std::string part = path.substr(begin, end - begin);
    const std::string part_shown = shown + "/" + path.substr(0, end);
    if (create && mkdirat(at.get(), part.c_str(), 0777) != 0 && errno != EEXIST)
      return StatusFromErrno(errno, "creating the folder " + part_shown);
    Descriptor next(openat(at.get(), part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (next.get() < 0) return StatusFromErrno(errno, "opening " + part_shown);
    at = std::move(next);
  }
  return at;
}

std::string_view FileName(std::string_view path) { return path.substr(path.rfind('/') + 1); }

Status RefuseExisting(int root, const ModelFile& file, const std::string& dir) {
  const Result<Descriptor> parent = OpenParent(root, file.path, dir, /*create=*/false);
  if (!parent.ok()) return parent.status().code() == StatusCode::kNotFound ? OkStatus() : parent.status();
  struct stat st;
  const std::string name(FileName(file.path));
  if (fstatat(parent->get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0)
    return AlreadyExists(dir + "/" + file.path + " exists and is not overwritten; export to another folder");
  return errno == ENOENT ? OkStatus() : StatusFromErrno(errno, "reading the attributes of " + dir + "/" + file.path);
}

Status WriteAll(int fd, ByteSpan bytes, const std::string& shown) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return StatusFromErrno(errno, "writing " + shown);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return OkStatus();
}

// Contents, attributes, everything on disk; still under a temporary name.
Status WriteFile(Catalog& catalog, const ModelFile& file, int fd, const std::string& shown, JobControl& job) {
  RETURN_IF_ERROR(ReadWholeFile(catalog, file.sha256, job, [&](ByteSpan bytes) {
                    return WriteAll(fd, bytes, shown);
                  }).WithContext(shown));
  // The store keeps who may read; the owner of an export may change it too.
  if (fchmod(fd, (file.mode & 0444) | S_IWUSR) != 0) return StatusFromErrno(errno, "setting the mode of " + shown);
  timespec times[2] = {{0, UTIME_OMIT}, {file.mtime_ns / 1'000'000'000, file.mtime_ns % 1'000'000'000}};
  if (times[1].tv_nsec < 0) {
    times[1].tv_sec -= 1;
    times[1].tv_nsec += 1'000'000'000;
  }
  if (futimens(fd, times) != 0) return StatusFromErrno(errno, "setting the times of " + shown);
  if (fsync(fd) != 0) return StatusFromErrno(errno, "syncing " + shown);
  return OkStatus();
}

Status ExportFile(Catalog& catalog, const ModelFile& file, int root, const std::string& dir, JobControl& job) {
  const std::string shown = dir + "/" + file.path;
  ASSIGN_OR_RETURN(const Descriptor parent, OpenParent(root, file.path, dir, /*create=*/true));
  const std::string name(FileName(file.path));
  // Not derived from the name, which may be as long as names get.
  const std::string temporary = ".modelstore-export-" + std::to_string(getpid());
  Descriptor fd(openat(parent.get(), temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (fd.get() < 0) return StatusFromErrno(errno, "creating " + dir + "/" + temporary);
  Status status = WriteFile(catalog, file, fd.get(), shown, job);
  if (status.ok() && renameat2(parent.get(), temporary.c_str(), parent.get(), name.c_str(), RENAME_NOREPLACE) != 0)
    status = StatusFromErrno(errno, "creating " + shown);
  if (!status.ok()) {
    unlinkat(parent.get(), temporary.c_str(), 0);
    return status;
  }
  if (fsync(parent.get()) != 0) return StatusFromErrno(errno, "syncing the folder of " + shown);
  return OkStatus();
}

}  // namespace

Result<ExportReport> Export(Catalog& catalog, const std::string& name, const std::string& dir, JobControl& job) {
  const std::shared_lock keep(catalog.collect_mutex());
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
  for (const ModelFile& file : model.files) RETURN_IF_ERROR(CheckFilePath(file.path));
  RETURN_IF_ERROR(MakeFolders(dir));
  const Descriptor root(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (root.get() < 0) return StatusFromErrno(errno, "opening " + dir);
  // All names first: an export that cannot be completed writes nothing.
  for (const ModelFile& file : model.files) RETURN_IF_ERROR(RefuseExisting(root.get(), file, dir));
  job.Begin("writing", model.logical_bytes);
  ExportReport report;
  for (const ModelFile& file : model.files) {
    RETURN_IF_ERROR(ExportFile(catalog, file, root.get(), dir, job));
    report.files += 1;
    report.bytes += file.bytes;
  }
  return report;
}

}  // namespace modelstore
