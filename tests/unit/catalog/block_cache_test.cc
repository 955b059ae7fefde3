#include "catalog/read/block_cache.h"

#include <gtest/gtest.h>

#include <future>
#include <optional>
#include <thread>
#include <utility>

namespace modelstore {
namespace {

using Use = BlockCache::Use;
constexpr uint64_t kUnit = 1000;

BlockId Id(uint32_t index) { return {.tensor = {}, .push = 1, .index = index}; }

// Decodes (makes) the block when it is not cached. True when it was cached.
bool Get(BlockCache& cache, uint32_t index, Use use = Use::kRead) {
  if (cache.Find(Id(index), use)) return true;
  auto own = cache.Reserve(2 * kUnit);
  EXPECT_TRUE(own.ok());
  BlockCache::Flight mine;
  auto block = cache.Join(Id(index), use, &*own, kUnit, &mine);
  EXPECT_TRUE(mine);
  cache.Finish(std::move(mine), Block::Create(cache.ledger(), kUnit), use, &*own);
  return false;
}

TEST(BlockCache, EvictsTheLeastRecentlyUsed) {
  BlockCache cache(10 * kUnit);
  for (uint32_t i = 0; i < 9; ++i) EXPECT_FALSE(Get(cache, i));
  EXPECT_FALSE(Get(cache, 9));  // needs two units while it is made
  EXPECT_FALSE(cache.Contains(Id(0)));
  for (uint32_t i = 1; i < 10; ++i) EXPECT_TRUE(cache.Contains(Id(i)));
  EXPECT_EQ(cache.stats().cached_bytes, 9 * kUnit);
  EXPECT_EQ(cache.stats().peak_bytes, 10 * kUnit);
}

TEST(BlockCache, WhatIsReusedSurvivesAScan) {
  BlockCache cache(100 * kUnit);
  for (uint32_t i = 0; i < 40; ++i) Get(cache, i);
  for (uint32_t i = 0; i < 40; ++i) Get(cache, 100 + i);
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(Get(cache, i, Use::kPredict));
  for (uint32_t i = 0; i < 1000; ++i) Get(cache, 1000 + i);
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(cache.Contains(Id(i))) << i;
  for (uint32_t i = 20; i < 40; ++i) EXPECT_FALSE(cache.Contains(Id(i))) << i;
}

TEST(BlockCache, WhatAReaderHasPassedIsForgotten) {
  BlockCache cache(100 * kUnit);
  for (uint32_t i = 0; i < 3; ++i) Get(cache, i);
  Get(cache, 3, Use::kPredict);
  const BlockCache::ReadPart parts[] = {{Id(0), kUnit}, {Id(1), kUnit / 2}, {Id(3), kUnit}, {Id(99), kUnit}};
  cache.Pass(parts);
  EXPECT_FALSE(cache.Contains(Id(0)));
  EXPECT_TRUE(cache.Contains(Id(1))) << "half of it is still to be read";
  EXPECT_TRUE(cache.Contains(Id(2)));
  EXPECT_TRUE(cache.Contains(Id(3))) << "it predicts others";
  const BlockCache::ReadPart rest[] = {{Id(1), kUnit / 2}};
  const BlockPtr held = cache.Find(Id(1), Use::kRead);
  cache.Pass(rest);
  EXPECT_FALSE(cache.Contains(Id(1)));
  EXPECT_EQ(held->bytes().size(), kUnit) << "who holds it still has it";
}

TEST(BlockCache, AReservationThatMustNotWaitEvictsOrGivesUp) {
  BlockCache cache(10 * kUnit);
  Get(cache, 1);
  EXPECT_TRUE(*cache.Reserve(10 * kUnit, /*wait=*/false)) << "nobody uses the cached block";
  EXPECT_FALSE(cache.Contains(Id(1)));
  Get(cache, 1);
  const BlockPtr held = cache.Find(Id(1), Use::kRead);
  const auto refused = cache.Reserve(10 * kUnit, /*wait=*/false);
  ASSERT_TRUE(refused.ok());
  EXPECT_FALSE(*refused);
  EXPECT_TRUE(*cache.Reserve(9 * kUnit, /*wait=*/false));
  EXPECT_TRUE(cache.Contains(Id(1)));
}

TEST(BlockCache, ProvenBlocksLeaveRoomForNewOnes) {
  BlockCache cache(100 * kUnit);
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < 95; ++i) Get(cache, i);
  }
  for (uint32_t i = 0; i < 20; ++i) Get(cache, 1000 + i);
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(Get(cache, 1000 + i)) << i;
}

TEST(BlockCache, RefusesWhatCannotFit) {
  BlockCache cache(10 * kUnit);
  EXPECT_EQ(cache.Reserve(10 * kUnit + 1).status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(cache.Reserve(10 * kUnit).ok());
}

TEST(BlockCache, AReservationWaitsForAHeldBlock) {
  BlockCache cache(10 * kUnit);
  Get(cache, 1);
  BlockPtr held = cache.Find(Id(1), Use::kRead);
  std::promise<void> granted;
  std::thread waiter([&] {
    EXPECT_TRUE(cache.Reserve(10 * kUnit).ok());
    granted.set_value();
  });
  // The waiter forgets the block so that letting go of it frees its bytes.
  while (cache.Contains(Id(1))) std::this_thread::yield();
  held.reset();
  granted.get_future().wait();
  waiter.join();
  EXPECT_EQ(cache.stats().cached_bytes, 0u);
}

TEST(BlockCache, PrefetchTakesOnlyWhatIsSpare) {
  BlockCache cache(100 * kUnit);
  const auto prefetch = [&](uint32_t index) {
    auto own = cache.TryReserve(2 * kUnit, kUnit);
    if (!own) return false;
    BlockCache::Flight mine;
    (void)cache.Join(Id(index), Use::kPrefetch, &own, kUnit, &mine);
    cache.Finish(std::move(mine), Block::Create(cache.ledger(), kUnit), Use::kPrefetch, &own);
    return true;
  };
  for (uint32_t i = 0; i < 25; ++i) EXPECT_TRUE(prefetch(i)) << i;
  EXPECT_FALSE(prefetch(25)) << "more than a quarter of the cache is waiting to be read";
  for (uint32_t i = 0; i < 10; ++i) EXPECT_TRUE(Get(cache, i));
  EXPECT_TRUE(prefetch(25));
  // Blocks in use and reservations are never touched.
  auto rest = cache.Reserve(73 * kUnit);
  ASSERT_TRUE(rest.ok());
  std::vector<BlockPtr> held;
  for (uint32_t i = 0; i < 26; ++i) {
    if (auto block = cache.Find(Id(i), Use::kRead)) held.push_back(block);
  }
  EXPECT_FALSE(prefetch(99));
  EXPECT_EQ(held.size(), 26u);
}

TEST(BlockCache, WhatWasPrefetchedInVainMakesRoom) {
  BlockCache cache(100 * kUnit);
  const auto prefetch = [&](uint32_t index) {
    auto own = cache.TryReserve(2 * kUnit, kUnit);
    if (!own) return false;
    BlockCache::Flight mine;
    (void)cache.Join(Id(index), Use::kPrefetch, &own, kUnit, &mine);
    cache.Finish(std::move(mine), Block::Create(cache.ledger(), kUnit), Use::kPrefetch, &own);
    return true;
  };
  for (uint32_t i = 0; i < 25; ++i) EXPECT_TRUE(prefetch(i)) << i;
  EXPECT_FALSE(prefetch(25));
  for (uint32_t i = 0; i < 60; ++i) {
    Get(cache, 1000 + i);
    const BlockCache::ReadPart all[] = {{Id(1000 + i), kUnit}};
    cache.Pass(all);
  }
  EXPECT_TRUE(prefetch(25));
  EXPECT_FALSE(cache.Contains(Id(0)));
}

TEST(BlockCache, ABaseBlockIsCachedOnlyWhenThereIsRoom) {
  BlockCache cache(10 * kUnit);
  auto own = cache.Reserve(10 * kUnit);
  ASSERT_TRUE(own.ok());
  BlockCache::Flight mine;
  (void)cache.Join(Id(1), Use::kPredict, nullptr, 0, &mine);
  ASSERT_TRUE(mine);
  cache.Finish(std::move(mine), Block::Create(cache.ledger(), kUnit), Use::kPredict, nullptr);
  EXPECT_FALSE(cache.Contains(Id(1)));
  EXPECT_EQ(cache.stats().peak_bytes, 10 * kUnit);
}

TEST(BlockCache, ABaseBlockStaysWhenItIsWantedAgain) {
  constexpr uint64_t kBytes = BlockMemory::kSlotBytes;
  BlockCache cache(160 * kBytes);
  const auto predict = [&](uint32_t index) {
    if (cache.Find(Id(index), Use::kPredict)) return true;
    BlockCache::Flight mine;
    (void)cache.Join(Id(index), Use::kPredict, nullptr, 0, &mine);
    cache.Finish(std::move(mine), Block::Create(cache.ledger(), kBytes), Use::kPredict, nullptr);
    return false;
  };
  for (uint32_t i = 0; i < 100; ++i) {
    EXPECT_FALSE(predict(i));
    EXPECT_TRUE(predict(i)) << "two blocks of a delta may need it";
  }
  EXPECT_EQ(cache.stats().cached_bytes, 160 / 16 * kBytes);
  // Another fine-tune of the same base. Few are mixed up in the memory of what has gone.
  for (uint32_t i = 0; i < 90; ++i) EXPECT_FALSE(predict(i));
  int stayed = 0;
  for (uint32_t i = 0; i < 90; ++i) stayed += cache.Contains(Id(i));
  EXPECT_GE(stayed, 75);
}

TEST(BlockCache, AFailedDecodeIsForgotten) {
  BlockCache cache(10 * kUnit);
  auto own = cache.Reserve(kUnit);
  ASSERT_TRUE(own.ok());
  BlockCache::Flight mine;
  (void)cache.Join(Id(1), Use::kRead, &*own, kUnit, &mine);
  cache.Finish(std::move(mine), Corruption("bad"), Use::kRead, &*own);
  EXPECT_FALSE(cache.Contains(Id(1)));
}

TEST(BlockCache, AFlightThatEndsEarlyWakesWhoWaits) {
  BlockCache cache(10 * kUnit);
  std::thread waiter;
  {
    BlockCache::Flight mine;
    (void)cache.Join(Id(1), Use::kRead, nullptr, 0, &mine);
    ASSERT_TRUE(mine);
    waiter = std::thread([&] {
      BlockCache::Flight none;
      EXPECT_EQ(cache.Join(Id(1), Use::kRead, nullptr, 0, &none).status().code(), StatusCode::kResourceExhausted);
      EXPECT_FALSE(none);
    });
    while (cache.stats().waits == 0) std::this_thread::yield();
  }  // as when an exception passes
  waiter.join();
  EXPECT_FALSE(Get(cache, 1)) << "the next one decodes";
  EXPECT_TRUE(Get(cache, 1));
}

TEST(BlockCache, AReservationThatIsGivenUpLetsOthersPass) {
  Ledger ledger(10);
  const MutexLock lock(ledger.mutex);
  std::optional<Ledger::Ticket> first(std::in_place, ledger), second(std::in_place, ledger);
  const Ledger::Ticket third(ledger);
  EXPECT_TRUE(first->is_first());
  second.reset();
  EXPECT_FALSE(third.is_first());
  first.reset();
  EXPECT_TRUE(third.is_first());
}

TEST(BlockCache, BlocksOutliveTheCache) {
  BlockPtr held;
  {
    BlockCache cache(10 * kUnit);
    Get(cache, 1);
    held = cache.Find(Id(1), Use::kRead);
  }
  EXPECT_EQ(held->bytes().size(), kUnit);
}

}  // namespace
}  // namespace modelstore
