// Bytes on their way into the store, in a file without a name (layer: catalog/derive; private). Reading is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/support/unique_fd.h"

namespace modelstore {

class Spool {
 public:
  // In folder `dir`. Errors: NoSpace, Io.
  static Result<std::shared_ptr<Spool>> Create(const std::string& dir);

  // Returns where they begin. Errors: NoSpace, Io.
  Result<uint64_t> Append(ByteSpan bytes);
  // The bytes were appended. Errors: Io.
  Status Read(uint64_t offset, MutableByteSpan out) const;

 private:
  explicit Spool(UniqueFd fd) : fd_(std::move(fd)) {}

  const UniqueFd fd_;
  uint64_t bytes_ = 0;
};

}  // namespace modelstore
