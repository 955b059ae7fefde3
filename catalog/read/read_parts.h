// What of a tensor a read needs, and what a read consists of (layer: catalog/read; private).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "catalog/read/block_cache.h"
#include "catalog/read/read_engine.h"

namespace modelstore {

// Where a tensor's blocks are: all that a read needs when they are cached.
struct Geometry {
  TensorId tensor;
  uint64_t tensor_bytes = 0;
  PushId push = 0;
  uint32_t block_bytes = 0;  // of every block but the last

  BlockId Id(uint32_t index) const { return {tensor, push, index}; }
  uint64_t BytesOf(uint32_t index) const {
    return std::min<uint64_t>(block_bytes, tensor_bytes - uint64_t{index} * block_bytes);
  }
};

inline Geometry GeometryOf(const OpenTensor& tensor) {
  return {tensor.id, tensor.record.bytes, tensor.record.push,
          tensor.frame.block_elems * DTypeBytes(tensor.frame.dtype)};
}

// The geometry of an extent's tensor, taken from whatever record the tensor was last read by. Any thread.
struct ExtentGeometry {
  bool is_known() const { return block_bytes_.load(std::memory_order_acquire) != 0; }
  Geometry Get(const TensorId& tensor) const {
    return {tensor, tensor_bytes_.load(std::memory_order_relaxed), push_.load(std::memory_order_relaxed),
            block_bytes_.load(std::memory_order_relaxed)};
  }
  // A record that replaces another one differs in the push alone.
  void Set(const Geometry& geometry) {
    tensor_bytes_.store(geometry.tensor_bytes, std::memory_order_relaxed);
    push_.store(geometry.push, std::memory_order_relaxed);
    block_bytes_.store(geometry.block_bytes, std::memory_order_release);
  }

 private:
  std::atomic<uint64_t> tensor_bytes_{0};
  std::atomic<PushId> push_{0};
  std::atomic<uint32_t> block_bytes_{0};  // 0: not known yet
};

// A part of a read: of one block, or of a file's record.
struct Part {
  MutableByteSpan out;  // where the reader has room for it
  ByteSpan bytes;       // where it is; empty: not yet known
  BlockPtr block;       // holds `bytes`; null when they are in the record or copied
  BlockId id;
  TensorRef tensor;  // to decode the block; null when it was cached, and for a record
  uint32_t index = 0;
  size_t begin = 0;  // within the block

  void TakeFrom(BlockPtr from) {
    bytes = from->bytes().subspan(begin, out.size());
    block = std::move(from);
  }
  void Copy() {
    if (bytes.data() != out.data()) std::memcpy(out.data(), bytes.data(), out.size());
    bytes = out;
    block = nullptr;
  }
};

}  // namespace modelstore
