// TensorData: the bytes of one extent of a source, held in memory or read again for every pass (layer: catalog/write;
// private). Buffer: memory that is not cleared first. Safe for concurrent reads.
#pragma once

#include <cstring>
#include <memory>

#include "catalog/write/file_layout.h"
#include "codec/support/hash.h"

namespace modelstore {

// Like Bytes, but growing it neither clears nor keeps what it held.
class Buffer {
 public:
  MutableByteSpan Resize(size_t bytes) {
    if (bytes > capacity_) {
      bytes_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
      capacity_ = bytes;
    }
    size_ = bytes;
    return span();
  }
  MutableByteSpan span() { return {bytes_.get(), size_}; }
  ByteSpan span() const { return {bytes_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> bytes_;
  size_t capacity_ = 0, size_ = 0;
};

inline bool SameBytes(ByteSpan a, ByteSpan b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

class TensorData {
 public:
  // Reads the extent into `hold` when it has at most hold_bytes bytes. All three outlive the object.
  static Result<TensorData> Load(const SourceReader& source, const SourceExtent& extent, uint64_t hold_bytes,
                                 Buffer* hold);

  const SourceExtent& extent() const { return *extent_; }
  // Bytes [offset, offset + bytes) of the extent; in `scratch` unless they are held.
  Result<ByteSpan> Read(uint64_t offset, uint64_t bytes, Buffer* scratch) const;
  // StartTensorHash(dtype, shape) and all bytes.
  Result<Hash128> Hash() const;

 private:
  TensorData(const SourceReader& source, const SourceExtent& extent) : source_(&source), extent_(&extent) {}
  const SourceReader* source_;
  const SourceExtent* extent_;
  ByteSpan held_;
  bool is_held_ = false;
};

}  // namespace modelstore
