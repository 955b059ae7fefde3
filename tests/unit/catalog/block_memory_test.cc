#include "catalog/read/block_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

namespace modelstore {
namespace {

constexpr size_t kSlot = BlockMemory::kSlotBytes;
constexpr size_t kSlotsAnArena = BlockMemory::kArenaBytes / kSlot;

// Pages of the slot that take memory.
size_t ResidentPages(std::byte* slot) {
  unsigned char pages[kSlot / 4096] = {};
  if (::mincore(slot, kSlot, pages) != 0) return 0;  // not even mapped
  size_t count = 0;
  for (const unsigned char page : pages) count += page & 1;
  return count;
}

TEST(BlockMemory, SaysWhatABlockTakes) {
  EXPECT_EQ(BlockMemory::TakenBytes(1), 1u);
  EXPECT_EQ(BlockMemory::TakenBytes(kSlot / 2), kSlot / 2);
  EXPECT_EQ(BlockMemory::TakenBytes(kSlot / 2 + 1), kSlot);
  EXPECT_EQ(BlockMemory::TakenBytes(kSlot), kSlot);
  EXPECT_EQ(BlockMemory::TakenBytes(kSlot + 1), kSlot + 1);
}

TEST(BlockMemory, TheLastFreedSlotIsUsedAgain) {
  BlockMemory memory(kSlotsAnArena * kSlot);
  std::byte* const first = memory.Allocate(kSlot);
  std::byte* const second = memory.Allocate(kSlot - 1000);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_NE(first, second);
  memory.Free(first, kSlot);
  EXPECT_EQ(memory.Allocate(kSlot), first);
  memory.Free(first, kSlot);
  memory.Free(second, kSlot - 1000);
}

TEST(BlockMemory, WhatIsSpareGoesBackToTheSystem) {
  BlockMemory memory(kSlot);
  std::vector<std::byte*> slots;
  for (size_t i = 0; i < 3 * kSlotsAnArena; ++i) {
    slots.push_back(memory.Allocate(kSlot));
    ASSERT_NE(slots.back(), nullptr);
    std::memset(slots.back(), 1, kSlot);
    EXPECT_EQ(ResidentPages(slots.back()), kSlot / 4096);
  }
  for (std::byte* const slot : slots) memory.Free(slot, kSlot);
  size_t resident = 0;
  for (std::byte* const slot : slots) resident += ResidentPages(slot);
  EXPECT_LE(resident, kSlot / 4096);
}

TEST(BlockMemory, SlotsNeverOverlap) {
  BlockMemory memory(2 * kSlot);
  const auto churn = [&](unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::pair<std::byte*, size_t>> held;
    for (int i = 0; i < 2000; ++i) {
      if (held.size() < 20 && random() % 5 != 0) {
        const size_t bytes = random() % 4 == 0 ? random() % kSlot + 1 : kSlot;
        std::byte* const data = memory.Allocate(bytes);
        ASSERT_NE(data, nullptr);
        data[0] = data[bytes - 1] = std::byte(seed);
        held.emplace_back(data, bytes);
      } else if (!held.empty()) {
        std::swap(held[random() % held.size()], held.back());
        const auto [data, bytes] = held.back();
        held.pop_back();
        ASSERT_EQ(data[0], std::byte(seed));
        ASSERT_EQ(data[bytes - 1], std::byte(seed));
        memory.Free(data, bytes);
      }
    }
    for (const auto& [data, bytes] : held) memory.Free(data, bytes);
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(churn, seed);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace modelstore
