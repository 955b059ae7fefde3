// BlockMemory: where decoded blocks lie (layer: catalog/read; private).
//
// Thread-safe; the mutex is never held in a system call. Blocks of the usual size get slots of arenas that the kernel
// may back with one huge page, because touching fresh memory page by page cost more than decoding into it (0.8 s a GB
// against 0.5); slots are used again, the last freed first. A few are kept free, the rest goes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "codec/support/mutex.h"

namespace modelstore {

class BlockMemory {
 public:
  static constexpr size_t kSlotBytes = 256 * 1024;
  static constexpr size_t kArenaBytes = 2 * 1024 * 1024;  // a huge page of x86-64

  // The memory that a block of `bytes` takes.
  static constexpr size_t TakenBytes(size_t bytes) { return InSlot(bytes) ? kSlotBytes : bytes; }

  // Keeps at most `max_spare_bytes` free.
  explicit BlockMemory(uint64_t max_spare_bytes) : max_spare_bytes_(max_spare_bytes) {}
  ~BlockMemory();  // all is freed
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  // Uninitialised; null when the system has no memory.
  std::byte* Allocate(size_t bytes);
  void Free(std::byte* data, size_t bytes);

 private:
  static constexpr bool InSlot(size_t bytes) { return bytes > kSlotBytes / 2 && bytes <= kSlotBytes; }
  bool AddArena();

  const uint64_t max_spare_bytes_;
  Mutex mutex_;
  std::unordered_map<uintptr_t, size_t> used_slots_ MS_GUARDED_BY(mutex_);  // by arena
  std::vector<std::byte*> spare_ MS_GUARDED_BY(mutex_);                     // resident slots
  std::vector<std::byte*> returned_ MS_GUARDED_BY(mutex_);                  // slots whose pages the kernel has back
};

}  // namespace modelstore
