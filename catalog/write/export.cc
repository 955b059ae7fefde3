#include "catalog/write/export.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <string_view>
#include <utility>

#include "catalog/write/file_reader.h"

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

// Mode and times of the finished file, everything on disk; still under a temporary name.
Status Finish(int fd, const ModelFile& file, const std::string& shown) {
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

// "" for an exact model.
Result<std::string> FidelityNote(const Catalog& catalog, const ModelRecord& model,
                                 const std::function<bool(const ModelRecord&)>& may_see) {
  if (model.fidelity != Fidelity::kCompact) return std::string();
  if (std::any_of(model.files.begin(), model.files.end(),
                  [](const ModelFile& file) { return file.path == kFidelityFile; }))
    return std::string();
  std::string base = "a model that is not shown here";
  if (const std::optional<ModelEntry> entry = catalog.FindById(model.base)) {
    const Result<ModelRecord> other = catalog.FindModel(entry->name);
    if (other.ok() && other->id == model.base && (!may_see || may_see(*other))) base = other->name;
  }
  char drift[64], date[32];
  std::snprintf(drift, sizeof drift, "%.4g (%s)", model.drift,
                model.drift_kind == DriftKind::kMoments ? "moments" : "plain");
  const std::time_t seconds = static_cast<std::time_t>(model.created_ns / 1'000'000'000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  if (std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) date[0] = '\0';
  return "These files are a compact copy, not the original: modelstore kept a pruned, quantized part of what makes\n"
         "this model differ from its base. They are the same bytes at every export.\n\n"
         "model:  " +
         model.name + (model.derived ? "\nsource: " : "\nbase:   ") + base +
         (model.derived ? "\nrecipe: " : "\nmethod: ") + model.method + "\ndrift:  " + drift +
         (model.derived ? " of the source" : "") + ", 0 is the original and 1 is the base\nmade:   " + date + "\n";
}

class FolderSink final : public ExportSink {
 public:
  explicit FolderSink(std::string dir) : dir_(std::move(dir)) {}
  ~FolderSink() override { Abandon(); }

  Status Begin(const std::vector<ModelFile>& files) override {
    files_ = files;
    for (const ModelFile& file : files_) RETURN_IF_ERROR(CheckFilePath(file.path));
    RETURN_IF_ERROR(MakeFolders(dir_));
    root_ = Descriptor(open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (root_.get() < 0) return StatusFromErrno(errno, "opening " + dir_);
    for (const ModelFile& file : files_) RETURN_IF_ERROR(RefuseExisting(root_.get(), file, dir_));
    return OkStatus();
  }

  Status BeginFile(size_t index) override {
    file_ = &files_[index];
    shown_ = dir_ + "/" + file_->path;
    ASSIGN_OR_RETURN(parent_, OpenParent(root_.get(), file_->path, dir_, /*create=*/true));
    fd_ = Descriptor(
        openat(parent_.get(), temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd_.get() < 0) return StatusFromErrno(errno, "creating " + dir_ + "/" + temporary_);
    return OkStatus();
  }

  Status Write(ByteSpan bytes) override { return WriteAll(fd_.get(), bytes, shown_); }

  Status EndFile() override {
    RETURN_IF_ERROR(Finish(fd_.get(), *file_, shown_));
    const std::string name(FileName(file_->path));
    if (renameat2(parent_.get(), temporary_.c_str(), parent_.get(), name.c_str(), RENAME_NOREPLACE) != 0)
      return StatusFromErrno(errno, "creating " + shown_);
    fd_ = Descriptor(-1);
    if (fsync(parent_.get()) != 0) return StatusFromErrno(errno, "syncing the folder of " + shown_);
    return OkStatus();
  }

 private:
  void Abandon() {
    if (fd_.get() >= 0) unlinkat(parent_.get(), temporary_.c_str(), 0);
  }

  const std::string dir_;
  // Not derived from the name, which may be as long as names get.
  const std::string temporary_ = ".modelstore-export-" + std::to_string(getpid());
  std::vector<ModelFile> files_;
  Descriptor root_{-1};
  const ModelFile* file_ = nullptr;  // the one being written
  std::string shown_;
  Descriptor parent_{-1};
  Descriptor fd_{-1};  // open as long as the temporary file exists
};

}  // namespace

std::unique_ptr<ExportSink> NewFolderSink(std::string dir) { return std::make_unique<FolderSink>(std::move(dir)); }

Result<ExportReport> Export(Catalog& catalog, const std::string& name,
                            const std::function<Status(const ModelRecord&, const ModelFile&)>& may_read,
                            ExportSink& sink, JobControl& job, const std::function<bool(const ModelRecord&)>& may_see) {
  // Files that are open stay readable whatever is removed and pruned: a sink may take as long as it likes, and nothing
  // waits for it.
  std::vector<FileRef> open;
  ModelRecord model;
  {
    ASSIGN_OR_RETURN(const CollectGate::Hold keep, catalog.collect_gate().Share(job));
    ASSIGN_OR_RETURN(model, catalog.FindModel(name));
    for (const ModelFile& file : model.files) {
      RETURN_IF_ERROR(CheckFilePath(file.path));
      if (may_read) RETURN_IF_ERROR(may_read(model, file));
    }
    for (const ModelFile& file : model.files) {
      Result<FileRef> opened = catalog.reader().OpenFileByHash(file.sha256);
      RETURN_IF_ERROR(opened.status().WithContext(name + "/" + file.path));
      open.push_back(std::move(opened).value());
    }
  }
  ASSIGN_OR_RETURN(const std::string note, FidelityNote(catalog, model, may_see));
  std::vector<ModelFile> files = model.files;
  if (!note.empty()) {
    ModelFile& added = files.emplace_back();
    added.path = kFidelityFile;
    added.bytes = note.size();
    added.mtime_ns = model.created_ns;
    // Who may read all other files may read what they are.
    for (const ModelFile& file : model.files) added.mode &= file.mode;
    if (!model.files.empty()) added.gid = model.files.front().gid;
  }
  RETURN_IF_ERROR(sink.Begin(files));
  job.Begin("writing", model.logical_bytes);
  ExportReport report;
  for (size_t i = 0; i < model.files.size(); ++i) {
    const ModelFile& file = model.files[i];
    RETURN_IF_ERROR(sink.BeginFile(i));
    RETURN_IF_ERROR(ReadWholeFile(catalog, file.sha256, job, [&](ByteSpan bytes) {
                      return sink.Write(bytes);
                    }).WithContext(name + "/" + file.path));
    RETURN_IF_ERROR(sink.EndFile());
    report.files += 1;
    report.bytes += file.bytes;
  }
  if (!note.empty()) {
    RETURN_IF_ERROR(sink.BeginFile(model.files.size()));
    RETURN_IF_ERROR(sink.Write(AsBytes(note)));
    RETURN_IF_ERROR(sink.EndFile());
  }
  return report;
}

}  // namespace modelstore
