// SourceReader: positioned reads of one source file of a push, and the check that it did not change
// (layer: catalog/write). Safe for concurrent reads; borrows the descriptor or content of the SourceFile, or shares one
// that was opened because the SourceTree had more files than descriptors.
#pragma once

#include <sys/types.h>

#include "catalog/write/push.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

class SourceReader {
 public:
  // Errors: Io (changed or vanished since it was listed), NotFound, PermissionDenied.
  static Result<SourceReader> Open(const SourceFile& file);

  const SourceFile& file() const { return *file_; }
  int descriptor() const { return own_ != nullptr ? own_->get() : file_->fd; }
  // Fills `out` from `offset`. Errors: Io ("… changed while it was pushed" when the file became shorter).
  Status ReadAt(uint64_t offset, MutableByteSpan out) const;
  // Errors: Io when size, time of modification or identity say that the file changed or was removed since it was
  // listed, or when it has more bytes than they say: files that the kernel makes up (/proc) are regular and claim to be
  // empty.
  Status CheckSame() const;
  // Also when it has a new time of change. That only says that something changed: a rewrite of the same size whose time
  // of modification was set back, but also a new mode or one more name.
  Status CheckUnchanged() const;
  // Of an open file: its time of change; who may read and execute it, but for its folders. Errors: Io.
  Result<TimeNs> ChangeTimeNow() const;
  Result<uint32_t> ModeNow() const;

 private:
  Status CheckEnd() const;
  SourceReader(const SourceFile* file, SourceWindow::Descriptor own) : file_(file), own_(std::move(own)) {}
  const SourceFile* file_;
  SourceWindow::Descriptor own_;  // null: the tree holds it, or it has content
};

// Opens the file by the path that the user knows, with this process's rights. Errors: Io (it vanished), what the system
// answers.
Result<UniqueFd> OpenShown(const SourceFile& file);

// "… changed while it was pushed; push it again": the error for every sign of a changed source.
Status SourceChanged(const SourceFile& file, const std::string& how);

}  // namespace modelstore
