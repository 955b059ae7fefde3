#include "catalog/write/source_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "catalog/write/source_access.h"
#include "catalog/write/source_stat.h"

namespace modelstore {

Status SourceChanged(const SourceFile& file, const std::string& how) {
  return IoError(file.shown_as + " changed while it was pushed (" + how + "); nothing was stored, push it again");
}

Result<SourceReader> SourceReader::Open(const SourceFile& file) {
  if (file.fd >= 0 || file.content != nullptr) return SourceReader(&file, nullptr);
  SourceWindow::Descriptor opened;
  if (file.window != nullptr) {
    ASSIGN_OR_RETURN(opened, file.window->Open(file));
  } else {
    ASSIGN_OR_RETURN(UniqueFd fd, OpenShown(file));
    opened = std::make_shared<const UniqueFd>(std::move(fd));
  }
  SourceReader reader(&file, std::move(opened));
  RETURN_IF_ERROR(reader.CheckSame());
  return reader;
}

Result<UniqueFd> OpenShown(const SourceFile& file) {
  // O_NONBLOCK: a FIFO that took the file's place must not hang the push.
  UniqueFd fd(open(file.shown_as.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.ok()) return fd;
  if (errno == ENOENT) return IoError(file.shown_as + " vanished while it was pushed; nothing was stored");
  return StatusFromErrno(errno, "opening " + file.shown_as);
}

Status SourceReader::ReadAt(uint64_t offset, MutableByteSpan out) const {
  if (file_->content != nullptr) return file_->content->ReadAt(offset, out).WithContext(file_->shown_as);
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = pread(descriptor(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0) {
      if (errno == EINTR) continue;
      return StatusFromErrno(errno, "reading " + file_->shown_as);
    }
    if (n == 0)
      return SourceChanged(*file_, "expected " + std::to_string(file_->bytes) + " bytes, found its end at " +
                                       std::to_string(offset + done));
    done += static_cast<size_t>(n);
  }
  return OkStatus();
}

Status SourceReader::CheckUnchanged() const {
  RETURN_IF_ERROR(CheckSame());
  if (file_->content != nullptr) return OkStatus();
  ASSIGN_OR_RETURN(const TimeNs changed_ns, ChangeTimeNow());
  if (changed_ns != file_->ctime_ns) return SourceChanged(*file_, "its content or attributes were changed");
  return OkStatus();
}

Result<TimeNs> SourceReader::ChangeTimeNow() const {
  struct stat now;
  if (fstat(descriptor(), &now) != 0) return StatusFromErrno(errno, "reading the attributes of " + file_->shown_as);
  return ChangeTime(now);
}

Result<uint32_t> SourceReader::ModeNow() const {
  struct stat now;
  if (fstat(descriptor(), &now) != 0) return StatusFromErrno(errno, "reading the attributes of " + file_->shown_as);
  const Result<InodeAccess> access = InodeAccess::Of(descriptor());
  if (!access.ok()) return access.status().WithContext(file_->shown_as);
  return EffectiveMode(now, *access, {});
}

Status SourceReader::CheckSame() const {
  if (file_->content != nullptr) return OkStatus();
  struct stat now;
  if (fstat(descriptor(), &now) != 0) return StatusFromErrno(errno, "reading the attributes of " + file_->shown_as);
  if (!S_ISREG(now.st_mode)) return SourceChanged(*file_, "it is no longer a regular file");
  if (static_cast<uint64_t>(now.st_size) != file_->bytes)
    return SourceChanged(*file_,
                         "it had " + std::to_string(file_->bytes) + " bytes, now " + std::to_string(now.st_size));
  if (ModificationTime(now) != file_->mtime_ns) return SourceChanged(*file_, "its time of modification is new");
  if (now.st_dev != file_->device || now.st_ino != file_->inode)
    return SourceChanged(*file_, "another file has taken its place");
  if (now.st_nlink == 0 && file_->linked) return SourceChanged(*file_, "it was removed or replaced");
  return CheckEnd();
}

Status SourceReader::CheckEnd() const {
  char beyond;
  ssize_t n = 0;
  do {
    n = pread(descriptor(), &beyond, 1, static_cast<off_t>(file_->bytes));
  } while (n < 0 && errno == EINTR);
  if (n < 0) return StatusFromErrno(errno, "reading " + file_->shown_as);
  if (n == 0) return OkStatus();
  return IoError(file_->shown_as + " grew while it was pushed or is not an ordinary file (it says that it has " +
                 std::to_string(file_->bytes) + " bytes and has more, like files of /proc); nothing was stored");
}

}  // namespace modelstore
