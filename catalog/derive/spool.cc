#include "catalog/derive/spool.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>

namespace modelstore {

Result<std::shared_ptr<Spool>> Spool::Create(const std::string& dir) {
  UniqueFd fd(open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  // File systems without such files have several ways to say so.
  if (!fd.ok()) {
    std::string path = dir + "/.derive-XXXXXX";
    fd = UniqueFd(mkostemp(path.data(), O_CLOEXEC));
    if (fd.ok()) unlink(path.c_str());
  }
  if (!fd.ok()) return StatusFromErrno(errno, "making a temporary file in " + dir);
  return std::shared_ptr<Spool>(new Spool(std::move(fd)));
}

Result<uint64_t> Spool::Append(ByteSpan bytes) {
  const uint64_t begin = bytes_;
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(bytes_));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return StatusFromErrno(errno, "writing a temporary file in the store");
    bytes_ += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return begin;
}

Status Spool::Read(uint64_t offset, MutableByteSpan out) const {
  while (!out.empty()) {
    const ssize_t n = pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return StatusFromErrno(errno, "reading a temporary file in the store");
    if (n == 0) return Internal("a temporary file was read behind its end");
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return OkStatus();
}

}  // namespace modelstore
