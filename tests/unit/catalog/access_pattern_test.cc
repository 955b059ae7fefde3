#include "catalog/read/access_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace modelstore {
namespace {

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB;
constexpr uint64_t kAhead = 16 * kMiB;

TEST(AccessPattern, OneReaderIsAdvisedEveryByteOnceAndNeverTooFar) {
  AccessPattern pattern;
  uint64_t advised_end = 0;
  for (uint64_t at = 0; at < 64 * kMiB; at += 128 * kKiB) {
    const auto advice = pattern.Note(at, 128 * kKiB, kAhead);
    const uint64_t end = at + 128 * kKiB;
    EXPECT_EQ(advice.sequential, at > 0);
    if (advice.prefetch_begin == advice.prefetch_end) continue;
    EXPECT_GE(advice.prefetch_begin, std::max(advised_end, end));
    EXPECT_LE(advice.prefetch_end, end + std::min(kAhead, end));
    advised_end = advice.prefetch_end;
  }
  EXPECT_GT(advised_end, 64 * kMiB);
}

// Once a stream is long enough, whole steps: what a device decodes at once.
TEST(AccessPattern, LongStreamsAreAdvisedInSteps) {
  AccessPattern pattern;
  constexpr uint64_t kStep = 4 * kMiB;
  uint64_t steps = 0, advised_end = 0;
  for (uint64_t at = 0; at < 64 * kMiB; at += 128 * kKiB) {
    const auto advice = pattern.Note(at, 128 * kKiB, 2 * kStep, kStep);
    if (advice.prefetch_begin == advice.prefetch_end) continue;
    EXPECT_GE(advice.prefetch_begin, advised_end);
    advised_end = advice.prefetch_end;
    if (at < kStep) continue;
    EXPECT_EQ(advice.prefetch_end % kStep, 0u);
    ++steps;
  }
  EXPECT_GE(steps, 14u);
  EXPECT_GE(advised_end, 64 * kMiB);
}

TEST(AccessPattern, ReadAheadOutOfOrderIsSequential) {
  AccessPattern pattern;
  std::mt19937_64 random(1);
  uint64_t advised = 0;
  bool sequential = false;
  for (uint64_t window = 0; window < 16; ++window) {
    std::vector<uint64_t> requests{0, 1, 2, 3, 4, 5, 6, 7};
    std::shuffle(requests.begin(), requests.end(), random);
    for (const uint64_t r : requests) {
      const auto advice = pattern.Note((window * 8 + r) * kMiB, kMiB, kAhead);
      sequential = advice.sequential;
      advised += advice.prefetch_end - advice.prefetch_begin;
    }
    EXPECT_TRUE(sequential) << window;
  }
  EXPECT_GT(advised, 64 * kMiB);
}

TEST(AccessPattern, SeveralStreamsAtOnce) {
  AccessPattern pattern;
  for (uint64_t step = 0; step < 20; ++step) {
    for (uint64_t stream = 0; stream < 6; ++stream) {
      const auto advice = pattern.Note(stream * 1000 * kMiB + step * kMiB, kMiB, kAhead);
      EXPECT_EQ(advice.sequential, step > 0);
    }
  }
}

TEST(AccessPattern, RandomReadsAreNotSequential) {
  for (const uint64_t file_bytes : {8 * kMiB, 300 * kMiB, 20000 * kMiB}) {
    AccessPattern pattern;
    std::mt19937_64 random(2);
    for (int i = 0; i < 500; ++i) {
      const auto advice = pattern.Note(random() % (file_bytes / (4 * kKiB)) * (4 * kKiB), 4 * kKiB, kAhead);
      EXPECT_FALSE(advice.sequential) << file_bytes << " " << i;
    }
  }
}

TEST(AccessPattern, ReadingOnePlaceAgainAndAgainIsNotSequential) {
  AccessPattern pattern;
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(pattern.Note(12345, 4 * kKiB, kAhead).sequential);
}

TEST(AccessPattern, KnowsWhatTheReaderHasPassed) {
  AccessPattern pattern;
  pattern.Note(0, kMiB, kAhead);
  const auto advice = pattern.Note(kMiB, kMiB, kAhead);
  ASSERT_LT(advice.prefetch_begin, advice.prefetch_end);
  EXPECT_TRUE(pattern.IsAhead(advice.prefetch_begin, advice.prefetch_begin + 256 * kKiB));
  pattern.Note(2 * kMiB, kMiB, kAhead);
  EXPECT_FALSE(pattern.IsAhead(advice.prefetch_begin, advice.prefetch_begin + 256 * kKiB));
}

}  // namespace
}  // namespace modelstore
