// UniqueFd: the owner of a file descriptor, which it closes (layer: codec/support). Not thread-safe.
#pragma once

#include <unistd.h>

#include <utility>

namespace modelstore {

class UniqueFd {
 public:
  UniqueFd() = default;
  // Takes over what open(), socket() and the like answered: -1 owns nothing.
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace modelstore
