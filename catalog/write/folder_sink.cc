#include "catalog/write/folder_sink.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>
#include <map>
#include <string_view>
#include <utility>

#include "codec/support/files.h"
#include "codec/support/guarded.h"
#include "codec/support/unique_fd.h"
#include "codec/support/user_namespace.h"

namespace modelstore {
namespace {

// Zeros are looked for in pieces of this size; shorter holes would only cut the file into more extents.
constexpr uint64_t kHoleBytes = 64 << 10;

bool IsZero(ByteSpan bytes) {
  // The first bytes decide nearly always; the rest is compared with itself, one byte further.
  return bytes.front() == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

// Modes of folders by their paths ("" is the topmost): who may read something below a folder may list it.
using FolderModes = std::map<std::string, mode_t, std::less<>>;

FolderModes ModesOf(const std::vector<ModelFile>& files) {
  FolderModes modes;
  for (const ModelFile& file : files) {
    const mode_t readers = file.mode & (S_IRGRP | S_IROTH);
    for (size_t end = file.path.rfind('/');; end = file.path.rfind('/', end - 1)) {
      mode_t& mode = modes[end == std::string::npos ? "" : file.path.substr(0, end)];
      mode |= S_IRWXU | readers | readers >> 2;
      if (end == std::string::npos) break;
    }
  }
  return modes;
}

// Walks from `root` to the folder of `path` without following links; creates what is missing, with these modes, unless
// there are none. NotFound when a part is missing.
Result<UniqueFd> OpenParent(int root, const std::string& path, const std::string& shown, const FolderModes* create) {
  UniqueFd at(openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!at.ok()) return StatusFromErrno(errno, "opening " + shown);
  size_t begin = 0;
  for (size_t end = path.find('/'); end != std::string::npos; begin = end + 1, end = path.find('/', begin)) {
    const std::string part = path.substr(begin, end - begin);
    const std::string part_shown = shown + "/" + path.substr(0, end);
    if (create != nullptr && mkdirat(at.get(), part.c_str(), create->at(path.substr(0, end))) != 0 && errno != EEXIST)
      return StatusFromErrno(errno, "creating the folder " + part_shown);
    UniqueFd next(openat(at.get(), part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.ok()) return StatusFromErrno(errno, "opening " + part_shown);
    at = std::move(next);
  }
  return at;
}

std::string_view FileName(std::string_view path) { return path.substr(path.rfind('/') + 1); }

Status RefuseExisting(int root, const ModelFile& file, const std::string& dir) {
  const Result<UniqueFd> parent = OpenParent(root, file.path, dir, nullptr);
  if (!parent.ok()) return parent.status().code() == StatusCode::kNotFound ? OkStatus() : parent.status();
  struct stat st;
  const std::string name(FileName(file.path));
  if (fstatat(parent->get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0)
    return AlreadyExists(dir + "/" + file.path + " exists and is not overwritten; export to another folder");
  return errno == ENOENT ? OkStatus() : StatusFromErrno(errno, "reading the attributes of " + dir + "/" + file.path);
}

// umask() would have to set another one to tell, and other threads make files meanwhile.
Result<mode_t> Umask() {
  constexpr std::string_view kLabel = "\nUmask:\t";
  char text[512];  // it is on the second line
  const UniqueFd fd(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
  const ssize_t n = fd.ok() ? read(fd.get(), text, sizeof text) : -1;
  const std::string_view status(text, n > 0 ? static_cast<size_t>(n) : 0);
  if (const size_t at = status.find(kLabel); at != status.npos) {
    const char* const first = status.data() + at + kLabel.size();
    unsigned umask = 0;
    const auto parsed = std::from_chars(first, status.data() + status.size(), umask, 8);
    if (parsed.ec == std::errc() && parsed.ptr != status.data() + status.size()) return static_cast<mode_t>(umask);
  }
  return IoError("/proc/self/status does not say the umask: is /proc mounted?");
}

class FolderSink final : public ExportSink {
 public:
  explicit FolderSink(std::string dir) : dir_(std::move(dir)) {}
  ~FolderSink() override {
    (void)Guarded([this] {
      Abandon();
      return OkStatus();
    });
  }

  Status Begin(const std::vector<ModelFile>& files) override {
    files_ = files;
    for (const ModelFile& file : files_) RETURN_IF_ERROR(CheckFilePath(file.path));
    // Not derived from a file's name, which may be as long as names get.
    ASSIGN_OR_RETURN(temporary_, RandomName(".modelstore-export-"));
    ASSIGN_OR_RETURN(umask_, Umask());
    folder_modes_ = ModesOf(files_);
    if (const size_t last = dir_.find_last_not_of('/'); last != std::string::npos)
      RETURN_IF_ERROR(MakeFolders(dir_.substr(0, dir_.rfind('/', last) + 1), 0777));
    RETURN_IF_ERROR(MakeFolders(dir_, files_.empty() ? 0777 : folder_modes_.at("")));
    root_ = UniqueFd(open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!root_.ok()) return StatusFromErrno(errno, "opening " + dir_);
    for (const ModelFile& file : files_) RETURN_IF_ERROR(RefuseExisting(root_.get(), file, dir_));
    return OkStatus();
  }

  Status BeginFile(size_t index) override {
    file_ = &files_[index];
    shown_ = dir_ + "/" + file_->path;
    position_ = 0;
    ends_in_hole_ = false;
    ASSIGN_OR_RETURN(parent_, OpenParent(root_.get(), file_->path, dir_, &folder_modes_));
    fd_ =
        UniqueFd(openat(parent_.get(), temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd_.ok()) return StatusFromErrno(errno, "creating " + dir_ + "/" + temporary_);
    return OkStatus();
  }

  Status Write(ByteSpan bytes) override {
    while (!bytes.empty()) {
      // Up to the next piece of zeros, and then that.
      size_t data = 0, zeros = 0;
      while (data < bytes.size() && zeros == 0) {
        const size_t piece = std::min<uint64_t>(bytes.size() - data, kHoleBytes - (position_ + data) % kHoleBytes);
        if (piece == kHoleBytes && IsZero(bytes.subspan(data, piece))) {
          zeros = piece;
        } else {
          data += piece;
        }
      }
      if (data > 0) {
        RETURN_IF_ERROR(WriteAll(fd_.get(), bytes.first(data), shown_));
        ends_in_hole_ = false;
      }
      if (zeros > 0) {
        if (lseek(fd_.get(), static_cast<off_t>(zeros), SEEK_CUR) < 0)
          return StatusFromErrno(errno, "writing " + shown_);
        ends_in_hole_ = true;
      }
      position_ += data + zeros;
      bytes = bytes.subspan(data + zeros);
    }
    return OkStatus();
  }

  Status EndFile() override {
    if (ends_in_hole_ && ftruncate(fd_.get(), static_cast<off_t>(position_)) != 0)
      return StatusFromErrno(errno, "writing " + shown_);
    RETURN_IF_ERROR(SetAttributes());
    if (fsync(fd_.get()) != 0) return StatusFromErrno(errno, "syncing " + shown_);
    finished_.reserve(files_.size());
    RETURN_IF_ERROR(GiveName(parent_.get(), temporary_, std::string(FileName(file_->path)), shown_));
    finished_.push_back({file_, {}});
    const bool is_known = fstat(fd_.get(), &finished_.back().st) == 0;
    fd_.Reset();
    if (!is_known) return StatusFromErrno(errno, "reading the attributes of " + shown_);
    return SyncFolder(parent_.get(), "the folder of " + shown_);
  }

 private:
  // Group, mode and times of the finished file, still under its temporary name.
  Status SetAttributes() {
    uint32_t mode = file_->mode & kFileModeBits;
    ASSIGN_OR_RETURN(const bool has_its_group, GiveGroup());
    if (!has_its_group) {
      const uint32_t both = (mode >> 3) & mode & S_IRWXO;
      const uint32_t narrowed = (mode & S_IRWXU) | (both << 3) | both;
      if (narrowed != mode && !std::exchange(groups_refused_, true))
        Warn("not every file below " + dir_ +
             " can be given its group: group and others get what both have in the store");
      mode = narrowed;
    }
    // What a default list of the folder adds for users and groups by name would share the group's bits.
    (void)!fremovexattr(fd_.get(), "system.posix_acl_access");
    // The store keeps who may read; the owner of an export may change it too.
    if (fchmod(fd_.get(), (mode | S_IWUSR) & ~umask_) != 0)
      RETURN_IF_ERROR(Tolerate(errno, "mode", "its options decide who may read what was exported", &modes_refused_));
    const timespec times[2] = {{0, UTIME_OMIT}, ToTimespec(file_->mtime_ns)};
    if (futimens(fd_.get(), times) != 0)
      RETURN_IF_ERROR(Tolerate(errno, "times", "the files have the time of the export", &times_refused_));
    return OkStatus();
  }

  // False when the file is of another group than its mode speaks of.
  Result<bool> GiveGroup() {
    const gid_t group = file_->gid;
    if (!UserNamespace::Own().SameGroup(group, group)) return false;
    // Refused to who is not in the group, and by file systems without owners: the mode says it then.
    (void)!fchown(fd_.get(), static_cast<uid_t>(-1), group);
    struct stat st;
    if (fstat(fd_.get(), &st) != 0) return StatusFromErrno(errno, "reading the attributes of " + shown_);
    return st.st_gid == group;
  }

  // exFAT, CIFS and FUSE file systems refuse attributes that they cannot keep: no reason to give up what was written.
  Status Tolerate(int error, const std::string& what, const std::string& consequence, bool* told) {
    if (error != EPERM && error != EACCES && !IsUnsupportedErrno(error))
      return StatusFromErrno(error, "setting the " + what + " of " + shown_);
    if (!*told) Warn("the file system of " + dir_ + " lets no " + what + " be set: " + consequence);
    *told = true;
    return OkStatus();
  }

  // An export that ends early leaves no file, so that it can be run again. What took a file's name since then stays.
  void Abandon() {
    if (fd_.ok()) unlinkat(parent_.get(), temporary_.c_str(), 0);
    if (finished_.size() == files_.size()) return;
    for (const Finished& finished : finished_) {
      const Result<UniqueFd> parent = OpenParent(root_.get(), finished.file->path, dir_, nullptr);
      if (!parent.ok()) continue;
      const std::string name(FileName(finished.file->path));
      struct stat st;
      if (fstatat(parent->get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 && IsUnchanged(st, finished.st))
        unlinkat(parent->get(), name.c_str(), 0);
    }
  }

  struct Finished {
    const ModelFile* file;
    struct stat st;
  };
  // The time too: a new file may get the number of one that was removed.
  static bool IsUnchanged(const struct stat& now, const struct stat& then) {
    return now.st_dev == then.st_dev && now.st_ino == then.st_ino && now.st_ctim.tv_sec == then.st_ctim.tv_sec &&
           now.st_ctim.tv_nsec == then.st_ctim.tv_nsec;
  }

  const std::string dir_;
  std::string temporary_;
  mode_t umask_ = 0;
  std::vector<ModelFile> files_;
  std::vector<Finished> finished_;
  FolderModes folder_modes_;
  UniqueFd root_;
  const ModelFile* file_ = nullptr;  // the one being written
  std::string shown_;
  UniqueFd parent_;
  UniqueFd fd_;  // open as long as the temporary file exists
  uint64_t position_ = 0;
  bool ends_in_hole_ = false;
  bool groups_refused_ = false, modes_refused_ = false, times_refused_ = false;
};

}  // namespace

std::unique_ptr<ExportSink> NewFolderSink(std::string dir) { return std::make_unique<FolderSink>(std::move(dir)); }

}  // namespace modelstore
