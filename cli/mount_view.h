// The daemon's mount as this process sees it (layer: cli). Move-only; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "codec/support/status.h"
#include "codec/support/unique_fd.h"

namespace modelstore {

class Session;

// A file of the mount, open for reading. Closes it.
class MountedFile {
 public:
  explicit MountedFile(UniqueFd fd) : fd_(std::move(fd)) {}

  int descriptor() const { return fd_.get(); }
  // Errors: Io; Unsupported (not a file of modelstore's).
  Result<uint64_t> Bytes() const;
  Result<std::string> Sha256() const;  // of its content, in hex, as the daemon says

 private:
  UniqueFd fd_;
};

class MountView {
 public:
  // Asks the daemon where it is. Errors: the request's; Unavailable (it has none); as At.
  static Result<MountView> Find(Session& session);
  // Errors: Unavailable (no mount can be seen there from here), PermissionDenied.
  static Result<MountView> At(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t device() const { return device_; }
  // Errors: NotFound, PermissionDenied, InvalidArgument (a name or path that no model has), Io.
  Result<MountedFile> Open(const std::string& model, const std::string& file) const;

 private:
  MountView(std::string path, UniqueFd root, uint64_t device)
      : path_(std::move(path)), root_(std::move(root)), device_(device) {}

  std::string path_;
  UniqueFd root_;
  uint64_t device_;
};

}  // namespace modelstore
