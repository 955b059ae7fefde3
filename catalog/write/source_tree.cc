#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <utility>

#include "catalog/schema/records.h"
#include "catalog/write/push.h"
#include "catalog/write/source_access.h"
#include "catalog/write/source_reader.h"
#include "catalog/write/source_stat.h"
#include "catalog/write/stored_content.h"
#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

// Descriptors left to the store, the mount and the sockets of this process; of few, three quarters.
constexpr size_t kReservedDescriptors = 256;

// Links to folders that have links to folders can lead to each of them in very many ways.
constexpr size_t kMostLinkedFolders = 1000;

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

// Asks the open file what it is. `folders`: those that lead to it.
Status Describe(std::span<const InodeAccess> folders, SourceFile& file) {
  struct stat st;
  if (fstat(file.fd, &st) != 0) return StatusFromErrno(errno, "reading the attributes of " + file.shown_as);
  if (!S_ISREG(st.st_mode)) return Refused(file.shown_as, KindOf(st.st_mode));
  const Result<InodeAccess> access = InodeAccess::Of(file.fd);
  if (!access.ok()) return access.status().WithContext(file.shown_as);
  file.bytes = static_cast<uint64_t>(st.st_size);
  file.mode = EffectiveMode(st, *access, folders);
  // A file of a store's mount keeps the mode that it has there.
  file.is_narrowed = (st.st_mode & 0555 & ~file.mode) != 0 && !MountedSha256(file.fd).ok();
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

  // The file, or link to one, that is the whole source.
  Status AddRootFile(const std::string& root, const std::string& path) {
    return AddFile(AT_FDCWD, root.c_str(), path, root, /*is_link=*/true);
  }

  // The folder that is the whole source.
  Status AddRootFolder(const std::string& root) {
    UniqueFd fd(open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.ok()) return StatusFromErrno(errno, "opening " + root);
    return AddLinkedFolder(std::move(fd), "", root);
  }

  std::vector<std::string> Notes() const {
    std::vector<std::string> notes;
    if (!followed_.empty())
      notes.push_back(Counted(followed_.size(), "link") + " to folders followed, such as " + followed_.front());
    if (!empty_.empty())
      notes.push_back(Counted(empty_.size(), "empty folder") + " not stored, such as " + empty_.front() +
                      ": a model is made of files");
    return notes;
  }

 private:
  static std::string Counted(size_t count, std::string_view what) {
    return std::to_string(count) + " " + std::string(what) + (count == 1 ? "" : "s");
  }

  // `parent`/`entry` is a regular file or a link to one.
  Status AddFile(int parent, const char* entry, const std::string& path, const std::string& shown, bool is_link) {
    RETURN_IF_ERROR(CheckFilePath(path).WithContext(shown));
    struct stat st;
    if (fstatat(parent, entry, &st, 0) != 0) return StatusFromErrno(errno, "reading the attributes of " + shown);
    if (!S_ISREG(st.st_mode)) return Refused(shown, KindOf(st.st_mode));
    SourceFile file;
    file.path = path;
    file.shown_as = shown;
    // O_NONBLOCK: opening what became a FIFO since must not hang.
    file.fd = openat(parent, entry, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (is_link ? 0 : O_NOFOLLOW));
    if (file.fd < 0) return StatusFromErrno(errno, "opening " + shown);
    files_->push_back(std::move(file));
    SourceFile& added = files_->back();
    if (is_link) {
      ASSIGN_OR_RETURN(std::vector<InodeAccess> folders, FoldersOf(added.fd, shown));
      // Who may not look into the folder of the link does not get to the file by it.
      folders.insert(folders.end(), folders_.begin(), folders_.end());
      RETURN_IF_ERROR(Describe(folders, added));
    } else {
      RETURN_IF_ERROR(Describe(folders_, added));
    }
    if (files_->size() > max_held_) {
      close(added.fd);
      added.fd = -1;
      added.ordinal = files_->size();
      added.window = window_;
    }
    return OkStatus();
  }

  // A folder inside the one whose entries are being added.
  Status AddFolder(int parent, const std::string& name, const std::string& prefix, const std::string& shown) {
    UniqueFd fd(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd.ok()) return StatusFromErrno(errno, "opening " + shown);
    Result<InodeAccess> access = InodeAccess::Of(fd.get());
    if (!access.ok()) return access.status().WithContext(shown);
    folders_.push_back(std::move(access).value());
    folders_.back().MarkListed();
    RETURN_IF_ERROR(AddEntries(std::move(fd), prefix, shown));
    folders_.pop_back();
    return OkStatus();
  }

  // A link to a folder, inside the one whose entries are being added.
  Status FollowLink(int parent, const std::string& name, const std::string& prefix, const std::string& shown) {
    UniqueFd fd(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat st;
    if (!fd.ok() || fstat(fd.get(), &st) != 0) return StatusFromErrno(errno, "following the link " + shown);
    if (std::any_of(folders_.begin(), folders_.end(), [&](const InodeAccess& above) { return above.IsOf(st); }))
      return Refused(shown, "a link to a folder that it lies in");
    if (followed_.size() >= kMostLinkedFolders)
      return Refused(shown, "one of more than " + std::to_string(kMostLinkedFolders) + " links to folders");
    followed_.push_back(shown);
    return AddLinkedFolder(std::move(fd), prefix, shown);
  }

  // A folder that other folders lead to than those walked so far.
  Status AddLinkedFolder(UniqueFd fd, const std::string& prefix, const std::string& shown) {
    Result<std::vector<InodeAccess>> folders = FoldersFrom(fd.get());
    if (!folders.ok()) return folders.status().WithContext(shown);
    folders->front().MarkListed();
    const size_t depth = folders_.size();
    folders_.insert(folders_.end(), folders->begin(), folders->end());
    RETURN_IF_ERROR(AddEntries(std::move(fd), prefix, shown));
    folders_.erase(folders_.begin() + static_cast<std::ptrdiff_t>(depth), folders_.end());
    return OkStatus();
  }

  // `prefix`: of the paths within the model, "" or ending in '/'.
  Status AddEntries(UniqueFd folder, const std::string& prefix, const std::string& shown) {
    DIR* dir = fdopendir(folder.get());
    if (dir == nullptr) return StatusFromErrno(errno, "listing " + shown);
    const int fd = folder.Release();
    const DirCloser closer{dir};
    std::vector<std::pair<std::string, bool>> folders;  // the name, whether it is a link
    bool is_empty = true;
    while (true) {
      errno = 0;
      const dirent* entry = readdir(dir);
      if (entry == nullptr) {
        if (errno != 0) return StatusFromErrno(errno, "listing " + shown);
        break;
      }
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      is_empty = false;
      const std::string entry_shown = shown + "/" + name;
      struct stat st;
      if (fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0)
        return StatusFromErrno(errno, "reading the attributes of " + entry_shown);
      const bool is_link = S_ISLNK(st.st_mode);
      if (is_link && fstatat(fd, name.c_str(), &st, 0) != 0) {
        if (errno == ENOENT || errno == ELOOP) return Refused(entry_shown, "a link to nothing");
        return StatusFromErrno(errno, "following the link " + entry_shown);
      }
      if (S_ISDIR(st.st_mode)) {
        folders.emplace_back(name, is_link);
        continue;
      }
      if (is_link && !S_ISREG(st.st_mode))
        return Refused(entry_shown, "a link to what is " + std::string(KindOf(st.st_mode)));
      RETURN_IF_ERROR(AddFile(fd, name.c_str(), prefix + name, entry_shown, is_link));
    }
    if (is_empty && !prefix.empty()) empty_.push_back(shown);
    for (const auto& [name, is_link] : folders) {
      const std::string folder_shown = shown + "/" + name;
      // Also bounds the recursion: a path is at most 4096 bytes.
      RETURN_IF_ERROR(CheckFilePath(prefix + name).WithContext(folder_shown));
      const std::string folder_prefix = prefix + name + "/";
      RETURN_IF_ERROR(is_link ? FollowLink(fd, name, folder_prefix, folder_shown)
                              : AddFolder(fd, name, folder_prefix, folder_shown));
    }
    return OkStatus();
  }

  std::vector<SourceFile>* files_;
  size_t max_held_;
  std::shared_ptr<SourceWindow> window_;
  std::vector<InodeAccess> folders_;  // that lead to the entries being added, and all above them
  std::vector<std::string> followed_, empty_;
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
    RETURN_IF_ERROR(scanner.AddRootFolder(shown));
  } else {
    RETURN_IF_ERROR(scanner.AddRootFile(shown, tree.default_name_));
  }
  std::sort(tree.files_.begin(), tree.files_.end(), ByPath);
  tree.notes_ = scanner.Notes();
  tree.NoteNarrowed();
  return tree;
}

Result<SourceTree> SourceTree::FromDescriptors(std::string default_name, std::vector<OpenedFile> files,
                                               const OwnMount& own) {
  SourceTree tree;
  tree.default_name_ = std::move(default_name);
  Status status;
  for (OpenedFile& file : files) {
    if (status.ok())
      status = tree.AddDescriptor(std::move(file), own, nullptr);
    else
      close(file.fd);
  }
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(tree.FinishDescriptors());
  return tree;
}

Status SourceTree::AddDescriptor(OpenedFile opened, const OwnMount& own, std::shared_ptr<SourceWindow> window) {
  SourceFile& file = files_.emplace_back();
  file.path = std::move(opened.path);
  file.shown_as = std::move(opened.shown_as);
  file.fd = opened.fd;  // closed by the tree from here on
  file.ordinal = files_.size() - 1;
  RETURN_IF_ERROR(CheckFilePath(file.path).WithContext(file.shown_as));
  RETURN_IF_ERROR(CheckReadOnly(file.fd, file.shown_as));
  RETURN_IF_ERROR(Describe({}, file));
  if (own.device != 0 && file.device == own.device) {
    const auto use_record = [&]() -> Status {
      ASSIGN_OR_RETURN(const Sha256Digest sha256, MountedSha256(file.fd));
      return UseStoredFile(*own.catalog, sha256, &file);
    };
    RETURN_IF_ERROR(use_record().WithContext(file.shown_as + ", a file of this store's mount"));
    close(std::exchange(file.fd, -1));
    return OkStatus();  // with the mode of its record: the folders of the mount say less than that
  }
  file.mode &= opened.mode | 0500;
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
    : default_name_(std::move(other.default_name_)),
      files_(std::exchange(other.files_, {})),
      notes_(std::move(other.notes_)) {}

SourceTree& SourceTree::operator=(SourceTree&& other) noexcept {
  std::swap(default_name_, other.default_name_);
  std::swap(files_, other.files_);
  std::swap(notes_, other.notes_);
  return *this;
}

SourceTree::~SourceTree() {
  for (const SourceFile& file : files_) {
    if (file.fd >= 0) close(file.fd);
  }
}

void SourceTree::NoteNarrowed() {
  const auto narrowed = [](const SourceFile& file) { return file.is_narrowed; };
  const auto first = std::find_if(files_.begin(), files_.end(), narrowed);
  if (first == files_.end()) return;
  const auto count = std::count_if(files_.begin(), files_.end(), narrowed);
  char mode[8];
  std::snprintf(mode, sizeof mode, "%04o", first->mode);
  notes_.push_back("folders or access control lists keep people from " + std::to_string(count) + " of " +
                   std::to_string(files_.size()) +
                   " files that the files' modes let in; the store keeps them out too (" + first->shown_as +
                   " gets mode " + mode + ")");
}

uint64_t SourceTree::total_bytes() const {
  uint64_t total = 0;
  for (const SourceFile& file : files_) total += file.bytes;
  return total;
}

}  // namespace modelstore
