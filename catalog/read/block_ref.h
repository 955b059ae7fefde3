// BlockRef: a decoded block or a part of one, handed out to a caller of the engine (layer: catalog/read).
//
// The bytes live as long as someone holds them, and all that time they count against the engine's budget. So a thread
// that holds a BlockRef may not ask the engine for another block, nor wait for anything else: what it waits for could
// wait for the memory of its block. Each thread counts the references that it holds, and the engine asserts that a
// thread which waits for memory holds none.
#pragma once

#include <memory>
#include <utility>

#include "codec/support/bytes.h"

namespace modelstore {

class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(ByteSpan bytes, std::shared_ptr<const void> owner) : bytes_(bytes), owner_(std::move(owner)) { Count(1); }
  BlockRef(const BlockRef& other) : bytes_(other.bytes_), owner_(other.owner_) { Count(1); }
  BlockRef(BlockRef&& other) noexcept
      : bytes_(std::exchange(other.bytes_, {})), owner_(std::exchange(other.owner_, nullptr)) {}
  BlockRef& operator=(BlockRef other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  ~BlockRef() { Count(-1); }
  ByteSpan bytes() const { return bytes_; }

  // How many references to blocks this thread made and has not let go of. Below 0 where a thread let go of what another
  // thread made.
  static int HeldHere() { return held_here_; }

 private:
  void Count(int n) const {
    if (owner_ != nullptr) held_here_ += n;
  }

  static inline thread_local int held_here_ = 0;
  ByteSpan bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace modelstore
