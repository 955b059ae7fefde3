// The socket that clients connect to (layer: daemon/service). Owns the descriptor and, when it made it, the file.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "codec/support/status.h"

namespace modelstore {

class SocketListener {
 public:
  // The socket that systemd passed, else one made at `path`: mode 0666 as root (who may do what is decided for each
  // request), 0600 otherwise; folders that are missing are made (0755 and 0700). What a killed daemon left there is
  // replaced. Called while the process has one thread: it sets the umask for a moment. Errors: Busy (a daemon listens
  // there), AlreadyExists (something else is there), InvalidArgument (too long a path), PermissionDenied, Io.
  static Result<std::unique_ptr<SocketListener>> Open(const std::string& path);
  ~SocketListener();
  SocketListener(const SocketListener&) = delete;
  SocketListener& operator=(const SocketListener&) = delete;

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  // A connection, close-on-exec. Errors: Busy (none waits), ResourceExhausted (no descriptor is free), Io.
  Result<int> Accept() const;

 private:
  SocketListener(int fd, std::string path, bool made) : fd_(fd), path_(std::move(path)), made_(made) {}

  const int fd_;
  const std::string path_;
  const bool made_;
  dev_t device_ = 0;  // of the file made
  ino_t inode_ = 0;
};

}  // namespace modelstore
