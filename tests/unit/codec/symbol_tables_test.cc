#include "codec/encode/symbol_tables.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace modelstore {
namespace {

TEST(SymbolTables, DeltaCellsTileTheValues) {
  for (const unsigned width : {8u, 16u, 32u, 64u}) {
    const uint32_t count = DeltaCellCount(width);
    for (uint32_t c = 0; c < count; ++c) {
      EXPECT_EQ(DeltaCell(DeltaCellBegin(c)), c);
      if (c > 0) {
        EXPECT_EQ(DeltaCell(DeltaCellBegin(c) - 1), c - 1);
      }
    }
    EXPECT_EQ(DeltaCell(width == 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1), count - 1);
  }
}

void ExpectSound(const RansContext& context, size_t max_symbols) {
  ASSERT_LE(context.size(), max_symbols);
  uint64_t base = 0;
  uint32_t start = 0;
  for (const RansSymbol& s : context) {
    EXPECT_EQ(s.base, base);
    EXPECT_EQ(s.start, start);
    base += s.raw_bits < 64 ? uint64_t{1} << s.raw_bits : 0;
    start += s.freq;
  }
  EXPECT_EQ(start, kProbScale);
}

TEST(SymbolTables, DeltaContextCoversWhatWasCounted) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 300; ++round) {
    const unsigned width = round % 2 ? 16 : 32;
    std::vector<uint64_t> cells(DeltaCellCount(width));
    const int used = 1 + static_cast<int>(rng() % 60);
    for (int i = 0; i < used; ++i)
      cells[std::min<size_t>(cells.size() - 1, rng() % (1 + rng() % cells.size()))] += 1 + rng() % 100000;
    const RansContext context = FitDeltaContext(cells, width);
    ExpectSound(context, kDeltaSymbols);
    for (uint32_t c = 0; c < cells.size(); ++c) {
      if (cells[c] == 0) continue;
      const uint64_t last = c + 1 < cells.size() ? DeltaCellBegin(c + 1) - 1 : (uint64_t{1} << width) - 1;
      for (const uint64_t v : {DeltaCellBegin(c), last}) {
        bool codable = false;
        for (const RansSymbol& s : context)
          codable |= s.freq > 0 && v >= s.base && v - s.base < (uint64_t{1} << s.raw_bits);
        EXPECT_TRUE(codable) << v;
      }
    }
  }
  EXPECT_TRUE(FitDeltaContext(std::vector<uint64_t>(DeltaCellCount(16)), 16).empty());
}

TEST(SymbolTables, SelfContextCoversWhatWasCounted) {
  std::mt19937_64 rng(2);
  for (const unsigned width : {8u, 16u, 32u, 64u}) {
    for (int round = 0; round < 40; ++round) {
      std::vector<uint64_t> cells(SelfCellCount(width));
      const int used = 1 + static_cast<int>(rng() % 2000);
      for (int i = 0; i < used; ++i) cells[rng() % cells.size()] += rng() % 1000 ? 1 + rng() % 50 : 1000000;
      const RansContext context = FitSelfContext(cells, width);
      ExpectSound(context, kSelfSymbols);
      for (uint64_t c = 0; c < cells.size(); ++c) {
        if (cells[c] == 0) continue;
        const uint64_t v = c << SelfCellShift(width);
        bool codable = false;
        for (const RansSymbol& s : context)
          codable |= s.freq > 0 && v >= s.base && (s.raw_bits >= 64 || v - s.base < (uint64_t{1} << s.raw_bits));
        EXPECT_TRUE(codable) << v;
      }
    }
  }
}

TEST(SymbolTables, TokenCellsTileTheRanks) {
  for (uint32_t c = 0; c < kTokenCellCount; ++c) {
    EXPECT_EQ(TokenCell(static_cast<uint16_t>(TokenCellBegin(c))), c);
    if (c > 0) {
      EXPECT_EQ(TokenCell(static_cast<uint16_t>(TokenCellBegin(c) - 1)), c - 1);
    }
  }
  EXPECT_EQ(TokenCell(0xffff), kTokenCellCount - 1);
  EXPECT_EQ(TokenCellBegin(kTokenCellCount), 0x10000u);
}

TEST(SymbolTables, TokenContextCoversWhatWasCounted) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 100; ++round) {
    std::vector<uint64_t> cells(kTokenCellCount);
    const int used = 1 + static_cast<int>(rng() % 300);
    for (int i = 0; i < used; ++i) cells[rng() % (1 + rng() % cells.size())] += 1 + rng() % 100000;
    const RansContext context = FitTokenContext(cells);
    ExpectSound(context, kSelfSymbols);
    for (uint32_t c = 0; c < cells.size(); ++c) {
      if (cells[c] == 0) continue;
      for (const uint64_t v : {TokenCellBegin(c), TokenCellBegin(c + 1) - 1}) {
        bool codable = false;
        for (const RansSymbol& s : context)
          codable |= s.freq > 0 && v >= s.base && v - s.base < (uint64_t{1} << s.raw_bits);
        EXPECT_TRUE(codable) << v;
      }
    }
  }
  EXPECT_TRUE(FitTokenContext(std::vector<uint64_t>(kTokenCellCount)).empty());
}

}  // namespace
}  // namespace modelstore
