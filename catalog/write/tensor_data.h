// TensorData: the bytes of one extent of a source, held in memory or read again for every pass (layer: catalog/write;
// private). Buffer: memory that is not cleared first. Safe for concurrent reads.
#pragma once

#include <cstring>
#include <list>
#include <memory>

#include "catalog/write/file_layout.h"
#include "codec/support/mutex.h"

namespace modelstore {

// Like Bytes, but growing it neither clears nor keeps what it held.
class Buffer {
 public:
  MutableByteSpan Resize(size_t bytes) {
    if (bytes > capacity_) {
      bytes_.reset();
      capacity_ = size_ = 0;
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

// Buffers that one push uses again and again: fresh memory costs a page fault every 4 KiB. Thread-safe.
class BufferPool {
 public:
  // A buffer that returns to the pool, with its memory, when it dies.
  class Lease {
   public:
    explicit Lease(BufferPool& pool) : pool_(pool) { pool_.Take(&buffer_); }
    ~Lease() { pool_.Give(&buffer_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Buffer* get() { return &buffer_.front(); }
    Buffer* operator->() { return get(); }

   private:
    BufferPool& pool_;
    std::list<Buffer> buffer_;  // one, as a node of a list: it returns without taking memory
  };

  // Gives the memory of buffers that nobody uses back.
  void Clear() {
    const MutexLock lock(mutex_);
    free_.clear();
  }

 private:
  void Take(std::list<Buffer>* buffer) {
    const MutexLock lock(mutex_);
    if (free_.empty()) {
      buffer->emplace_back();
    } else {
      buffer->splice(buffer->begin(), free_, free_.begin());  // the one that was used last
    }
  }
  void Give(std::list<Buffer>* buffer) noexcept {
    const MutexLock lock(mutex_);
    free_.splice(free_.begin(), *buffer);
  }

  Mutex mutex_;
  std::list<Buffer> free_ MS_GUARDED_BY(mutex_);
};

inline bool SameBytes(ByteSpan a, ByteSpan b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

class TensorData {
 public:
  // Reads the extent into `hold` when it has at most hold_bytes bytes. All three outlive the object.
  static Result<TensorData> Load(const SourceReader& source, const SourceExtent& extent, uint64_t hold_bytes,
                                 Buffer* hold);

  // Over bytes in memory, which outlive the object.
  static TensorData Over(const SourceExtent& extent, ByteSpan bytes) {
    TensorData data(extent);
    data.held_ = bytes;
    data.is_held_ = true;
    return data;
  }

  const SourceExtent& extent() const { return *extent_; }
  // Bytes [offset, offset + bytes) of the extent; in `scratch` unless they are held.
  Result<ByteSpan> Read(uint64_t offset, uint64_t bytes, Buffer* scratch) const;

 private:
  TensorData(const SourceReader& source, const SourceExtent& extent) : source_(&source), extent_(&extent) {}
  explicit TensorData(const SourceExtent& extent) : source_(nullptr), extent_(&extent) {}
  const SourceReader* source_;  // null when the bytes are held from the beginning
  const SourceExtent* extent_;
  ByteSpan held_;
  bool is_held_ = false;
};

}  // namespace modelstore
