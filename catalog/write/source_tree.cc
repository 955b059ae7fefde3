#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "catalog/schema/records.h"
#include "catalog/write/push.h"
#include "catalog/write/source_reader.h"
#include "catalog/write/source_stat.h"

namespace modelstore {
namespace {

// Descriptors left to the store, the mount and the sockets of this process; of few, three quarters.
constexpr size_t kReservedDescriptors = 256;

size_t MaxHeldDescriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 16;
  const auto all = static_cast<size_t>(limit.rlim_cur);
  return all > 2 * kReservedDescriptors ? all - kReservedDescriptors : all / 4;
}

// Of those that are not held.
constexpr size_t kWindowFiles = 8;

std::string_view KindOf(mode_t mode) {
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "not a regular file";
}

Status Refused(const std::string& shown, std::string_view kind) {
  return InvalidArgument(shown + " is " + std::string(kind) + ": only regular files can be stored; remove it or push " +
                         "a folder without it");
}

// Asks the open file what it is.
Status Describe(SourceFile& file) {
  struct stat st;
  if (fstat(file.fd, &st) != 0) return StatusFromErrno(errno, "reading the attributes of " + file.shown_as);
  if (!S_ISREG(st.st_mode)) return Refused(file.shown_as, KindOf(st.st_mode));
  file.bytes = static_cast<uint64_t>(st.st_size);
  file.mode = st.st_mode & 0777;
  file.gid = st.st_gid;
  file.mtime_ns = ModificationTime(st);
  file.ctime_ns = ChangeTime(st);
  file.device = st.st_dev;
  file.inode = st.st_ino;
  file.linked = st.st_nlink > 0;
  return OkStatus();
}

Status CheckReadOnly(int fd, const std::string& shown) {
  // O_PATH descriptors cannot be read and say O_RDONLY too.
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return StatusFromErrno(errno, "looking at the descriptor of " + shown);
  if ((flags & O_ACCMODE) == O_RDONLY && (flags & O_PATH) == 0) return OkStatus();
  return InvalidArgument(shown + ": its descriptor is not open for reading only");
}

bool ByPath(const SourceFile& a, const SourceFile& b) { return a.path < b.path; }

struct DirCloser {
  DIR* dir;
  ~DirCloser() { closedir(dir); }
};

class Scanner {
 public:
  explicit Scanner(std::vector<SourceFile>* files)
      : files_(files),
        max_held_(MaxHeldDescriptors()),
        window_(std::make_shared<SourceWindow>(kWindowFiles, OpenShown)) {}

  // `parent`/`entry` is a regular file or a link to one.
  Status AddFile(int parent, const char* entry, const std::string& path, const std::string& shown) {
    RETURN_IF_ERROR(CheckFilePath(path).WithContext(shown));
    struct stat st;
    if (fstatat(parent, entry, &st, 0) != 0) return StatusFromErrno(errno, "reading the attributes of " + shown);
    if (!S_ISREG(st.st_mode)) return Refused(shown, KindOf(st.st_mode));
    SourceFile file;
    file.path = path;
    file.shown_as = shown;
    // O_NONBLOCK: opening what became a FIFO since must not hang.
    file.fd = openat(parent, entry, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file.fd < 0) return StatusFromErrno(errno, "opening " + shown);
    files_->push_back(std::move(file));
    SourceFile& added = files_->back();
    RETURN_IF_ERROR(Describe(added));
    if (files_->size() > max_held_) {
      close(added.fd);
      added.fd = -1;
      added.ordinal = files_->size();
      added.window = window_;
    }
    return OkStatus();
  }

  // Takes ownership of `fd`. `prefix`: of the paths within the model, "" or ending in '/'.
  Status AddFolder(int fd, const std::string& prefix, const std::string& shown) {
    DIR* dir = fdopendir(fd);
    if (dir == nullptr) {
      const int error = errno;
      close(fd);
      return StatusFromErrno(error, "listing " + shown);
    }
    const DirCloser closer{dir};
    std::vector<std::string> folders;
    while (true) {
      errno = 0;
      const dirent* entry = readdir(dir);
      if (entry == nullptr) {
        if (errno != 0) return StatusFromErrno(errno, "listing " + shown);
        break;
      }
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      const std::string entry_shown = shown + "/" + name;
      struct stat st;
      if (fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0)
        return StatusFromErrno(errno, "reading the attributes of " + entry_shown);
      if (S_ISDIR(st.st_mode)) {
        folders.push_back(name);
        continue;
      }
      if (S_ISLNK(st.st_mode)) {
        struct stat target;
        if (fstatat(fd, name.c_str(), &target, 0) != 0) {
          if (errno == ENOENT || errno == ELOOP) return Refused(entry_shown, "a link to nothing");
          return StatusFromErrno(errno, "following the link " + entry_shown);
        }
        if (S_ISDIR(target.st_mode)) return Refused(entry_shown, "a link to a folder");
        if (!S_ISREG(target.st_mode))
          return Refused(entry_shown, "a link to what is " + std::string(KindOf(target.st_mode)));
      }
      RETURN_IF_ERROR(AddFile(fd, name.c_str(), prefix + name, entry_shown));
    }
    for (const std::string& name : folders) {
      const std::string folder_shown = shown + "/" + name;
      // Also bounds the recursion: a path is at most 4096 bytes.
      RETURN_IF_ERROR(CheckFilePath(prefix + name).WithContext(folder_shown));
      const int child = openat(fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (child < 0) return StatusFromErrno(errno, "opening " + folder_shown);
      RETURN_IF_ERROR(AddFolder(child, prefix + name + "/", folder_shown));
    }
    return OkStatus();
  }

 private:
  std::vector<SourceFile>* files_;
  size_t max_held_;
  std::shared_ptr<SourceWindow> window_;
};

std::string_view LastComponent(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

std::string DefaultName(const std::string& path) {
  const std::string_view last = LastComponent(path);
  if (!last.empty() && last != "." && last != "..") return std::string(last);
  char* real = realpath(path.c_str(), nullptr);
  if (real == nullptr) return std::string(last);
  std::string name(LastComponent(real));
  std::free(real);
  return name;
}

}  // namespace

Result<SourceTree> SourceTree::Scan(const std::string& path) {
  SourceTree tree;
  tree.default_name_ = DefaultName(path);
  struct stat st;
  std::string shown = path;
  while (shown.size() > 1 && shown.ends_with('/')) shown.pop_back();
  if (stat(path.c_str(), &st) != 0) {
    const int error = errno;
    if (error == ELOOP || (error == ENOENT && lstat(shown.c_str(), &st) == 0))
      return Refused(shown, "a link to nothing");
    return StatusFromErrno(error, "opening " + shown);
  }
  Scanner scanner(&tree.files_);
  if (S_ISDIR(st.st_mode)) {
    const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return StatusFromErrno(errno, "opening " + shown);
    RETURN_IF_ERROR(scanner.AddFolder(fd, "", shown));
  } else {
    RETURN_IF_ERROR(scanner.AddFile(AT_FDCWD, path.c_str(), tree.default_name_, shown));
  }
  std::sort(tree.files_.begin(), tree.files_.end(), ByPath);
  return tree;
}

Result<SourceTree> SourceTree::FromDescriptors(std::string default_name, std::vector<OpenedFile> files,
                                               uint64_t refused_device) {
  SourceTree tree;
  tree.default_name_ = std::move(default_name);
  Status status;
  for (OpenedFile& file : files) {
    if (status.ok())
      status = tree.AddDescriptor(std::move(file), refused_device, nullptr);
    else
      close(file.fd);
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(tree.FinishDescriptors());
  return tree;
}

Status SourceTree::AddDescriptor(OpenedFile opened, uint64_t refused_device, std::shared_ptr<SourceWindow> window) {
  SourceFile& file = files_.emplace_back();
  file.path = std::move(opened.path);
  file.shown_as = std::move(opened.shown_as);
  file.fd = opened.fd;  // closed by the tree from here on
  file.ordinal = files_.size() - 1;
  RETURN_IF_ERROR(CheckFilePath(file.path).WithContext(file.shown_as));
  RETURN_IF_ERROR(CheckReadOnly(file.fd, file.shown_as));
  RETURN_IF_ERROR(Describe(file));
  if (refused_device != 0 && file.device == refused_device)
    return PermissionDenied(file.shown_as + " is a file of the mount of this store: it is stored already");
  if (window != nullptr) {
    close(std::exchange(file.fd, -1));
    file.window = std::move(window);
  }
  return OkStatus();
}

Status SourceTree::FinishDescriptors() {
  std::sort(files_.begin(), files_.end(), ByPath);
  const auto twice = std::adjacent_find(files_.begin(), files_.end(),
                                        [](const SourceFile& a, const SourceFile& b) { return a.path == b.path; });
  if (twice != files_.end()) return InvalidArgument("two files of the path '" + twice->path + "'");
  return OkStatus();
}

SourceTree SourceTree::OfContent(std::string default_name, std::vector<SourceFile> files) {
  SourceTree tree;
  tree.default_name_ = std::move(default_name);
  tree.files_ = std::move(files);
  std::sort(tree.files_.begin(), tree.files_.end(), ByPath);
  return tree;
}

SourceTree::SourceTree(SourceTree&& other) noexcept
    : default_name_(std::move(other.default_name_)), files_(std::exchange(other.files_, {})) {}

SourceTree& SourceTree::operator=(SourceTree&& other) noexcept {
  std::swap(default_name_, other.default_name_);
  std::swap(files_, other.files_);
  return *this;
}

SourceTree::~SourceTree() {
  for (const SourceFile& file : files_) {
    if (file.fd >= 0) close(file.fd);
  }
}

uint64_t SourceTree::total_bytes() const {
  uint64_t total = 0;
  for (const SourceFile& file : files_) total += file.bytes;
  return total;
}

}  // namespace modelstore
