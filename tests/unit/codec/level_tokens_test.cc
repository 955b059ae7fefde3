// Tokens: against the order of docs/format.md, "Tokens", sorted here by comparison.
#include "codec/kernels/level_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "codec/kernels/value_map.h"

namespace modelstore::test {
namespace {

template <unsigned kGroup>
std::vector<std::array<int8_t, kGroup>> SortedGroups(int max) {
  using Group = std::array<int8_t, kGroup>;
  std::vector<Group> groups(1);
  for (unsigned i = 0; i < kGroup; ++i) {
    std::vector<Group> longer;
    for (Group g : groups) {
      for (int level = -max; level <= max; ++level) {
        g[i] = static_cast<int8_t>(level);
        longer.push_back(g);
      }
    }
    groups = longer;
  }
  const auto sum = [](const Group& g) {
    int s = 0;
    for (const int level : g) s += level * level;
    return s;
  };
  std::sort(groups.begin(), groups.end(),
            [&](const Group& a, const Group& b) { return sum(a) != sum(b) ? sum(a) < sum(b) : a < b; });
  return groups;
}

template <unsigned kGroup>
void ExpectTokens(int max, uint32_t count) {
  const auto groups = SortedGroups<kGroup>(max);
  ASSERT_EQ(groups.size(), count);
  const auto* levels = groups.data()->data();
  std::vector<uint16_t> patterns(count);
  LevelsToTokens(levels, count, kGroup, patterns.data());
  for (uint32_t rank = 0; rank < count; ++rank) ASSERT_EQ(SelfValue(patterns[rank], false), rank);
  std::vector<int8_t> back(size_t{count} * kGroup);
  EXPECT_TRUE(TokensToLevels(reinterpret_cast<const std::byte*>(patterns.data()), count, kGroup, back.data()));
  EXPECT_TRUE(std::equal(back.begin(), back.end(), levels));
}

TEST(LevelTokens, PairsAreRanked) { ExpectTokens<2>(kMaxPairLevel, kPairTokens); }
TEST(LevelTokens, QuadruplesAreRanked) { ExpectTokens<4>(kMaxQuadLevel, kQuadTokens); }

TEST(LevelTokens, RanksBeyondTheLastGroupAreRefused) {
  for (const unsigned group : {2u, 4u}) {
    const uint32_t count = group == 2 ? kPairTokens : kQuadTokens;
    for (const uint32_t rank : {count - 1, count, uint32_t{0xffff}}) {
      const uint16_t patterns[] = {FromSelfValue(static_cast<uint16_t>(rank), false), 0};
      int8_t levels[8] = {9, 9, 9, 9, 9, 9, 9, 9};
      EXPECT_EQ(TokensToLevels(reinterpret_cast<const std::byte*>(patterns), 2, group, levels), rank < count);
      EXPECT_EQ(levels[group], 0);
      EXPECT_EQ(levels[0] == 0, rank >= count);
    }
  }
}

}  // namespace
}  // namespace modelstore::test
