#include "catalog/read/block_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace modelstore {
namespace {

uintptr_t ArenaOf(const std::byte* slot) {
  return reinterpret_cast<uintptr_t>(slot) / BlockMemory::kArenaBytes * BlockMemory::kArenaBytes;
}

// 2 MiB at a multiple of 2 MiB; null when the system has no memory.
std::byte* MapArena() {
  constexpr size_t kBytes = BlockMemory::kArenaBytes;
  void* const mapped =
      ::mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  std::byte* const begin = static_cast<std::byte*>(mapped);
  const size_t skip = (kBytes - reinterpret_cast<uintptr_t>(begin) % kBytes) % kBytes;
  std::byte* const arena = begin + skip;
  if (skip != 0) ::munmap(begin, skip);
  ::munmap(arena + kBytes, kBytes - skip);
  (void)::madvise(arena, kBytes, MADV_HUGEPAGE);  // without it the pages are small ones
  return arena;
}

}  // namespace

BlockMemory::~BlockMemory() {
  const MutexLock lock(mutex_);
  for (const auto& [arena, used] : used_slots_) ::munmap(reinterpret_cast<void*>(arena), kArenaBytes);
}

bool BlockMemory::AddArena() {
  std::byte* const arena = MapArena();
  if (arena == nullptr) return false;
  const MutexLock lock(mutex_);
  try {
    used_slots_.emplace(reinterpret_cast<uintptr_t>(arena), 0);
    // Then Free need not allocate.
    const size_t slots = used_slots_.size() * (kArenaBytes / kSlotBytes);
    spare_.reserve(slots);
    returned_.reserve(slots);
  } catch (const std::bad_alloc&) {
    used_slots_.erase(reinterpret_cast<uintptr_t>(arena));
    ::munmap(arena, kArenaBytes);
    return false;
  }
  for (size_t at = kArenaBytes; at != 0; at -= kSlotBytes) returned_.push_back(arena + at - kSlotBytes);
  return true;
}

std::byte* BlockMemory::Allocate(size_t bytes) {
  if (!InSlot(bytes)) return new (std::nothrow) std::byte[bytes];
  do {
    const MutexLock lock(mutex_);
    for (std::vector<std::byte*>* const from : {&spare_, &returned_}) {
      if (from->empty()) continue;
      std::byte* const slot = from->back();
      from->pop_back();
      ++used_slots_.find(ArenaOf(slot))->second;
      return slot;
    }
  } while (AddArena());
  return nullptr;
}

void BlockMemory::Free(std::byte* data, size_t bytes) {
  if (!InSlot(bytes)) {
    delete[] data;
    return;
  }
  const uintptr_t arena = ArenaOf(data);
  bool last = false;
  {
    const MutexLock lock(mutex_);
    const auto used = used_slots_.find(arena);
    if ((spare_.size() + 1) * kSlotBytes <= max_spare_bytes_) {
      --used->second;
      spare_.push_back(data);
      return;
    }
    last = used->second == 1;
    if (last) {
      const auto of_arena = [&](const std::byte* slot) { return ArenaOf(slot) == arena; };
      std::erase_if(spare_, of_arena);
      std::erase_if(returned_, of_arena);
      used_slots_.erase(used);
    }
  }
  if (last) {
    ::munmap(reinterpret_cast<void*>(arena), kArenaBytes);
    return;
  }
  (void)::madvise(data, kSlotBytes, MADV_DONTNEED);
  const MutexLock lock(mutex_);
  --used_slots_.find(arena)->second;  // not before: the arena must stay
  returned_.push_back(data);
}

}  // namespace modelstore
