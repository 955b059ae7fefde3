// Error-feedback quantization of a block of columns: every CPU target does what the plain formula says, bit for bit.
#include "codec/kernels/residual_sweep.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "codec/kernels/cpu_target.h"

namespace modelstore {
namespace {

constexpr size_t kStride = 2 * kSweepRows;

// Arrays of a tile and what becomes of them.
struct Arrays {
  std::vector<float> root, cost, row_cost, anchors, targets, moved;
  std::vector<int8_t> levels;
};

Arrays RandomArrays(size_t columns, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Arrays a;
  const auto fill = [&](std::vector<float>& v, size_t n, float scale) {
    v.resize(n);
    for (float& x : v) x = normal(random) * scale;
  };
  fill(a.root, columns * columns, 0.2f);
  for (size_t i = 0; i < columns; ++i) a.root[i * columns + i] = 0.5f + std::abs(a.root[i * columns + i]);
  fill(a.cost, columns, 1);
  for (float& c : a.cost) c = std::abs(c);
  fill(a.row_cost, kSweepRows, 1);
  for (float& c : a.row_cost) c = std::abs(c);
  fill(a.anchors, columns * kStride, 0.1f);
  fill(a.targets, columns * kStride, 2e-3f);
  fill(a.moved, columns * kStride, 1e-3f);
  a.targets[0] = 0;
  a.targets[1] = -0.0f;
  a.targets[2] = 1e6f;
  a.targets[3] = -std::numeric_limits<float>::denorm_min();
  a.levels.assign(columns * kStride, 99);
  return a;
}

SweepTile TileOf(Arrays& a, size_t columns, bool feedback, bool anchored) {
  SweepTile tile;
  tile.columns = columns;
  tile.stride = kStride;
  tile.root = feedback ? a.root.data() : nullptr;
  tile.root_stride = columns;
  tile.cost = a.cost.data();
  tile.row_cost = a.row_cost.data();
  tile.anchors = anchored ? a.anchors.data() : nullptr;
  tile.targets = a.targets.data();
  tile.moved = a.moved.data();
  tile.levels = a.levels.data();
  return tile;
}

// As the header says, row by row.
void Reference(const SweepTile& tile, const SweepLevels& levels) {
  for (size_t r = 0; r < kSweepRows; ++r) {
    for (size_t c = 0; c < tile.columns; ++c) {
      const size_t at = c * tile.stride + r;
      const float own = tile.root != nullptr ? tile.root[c * tile.root_stride + c] : 1.0f;
      const float inverse = 1 / own;
      const float t = tile.root != nullptr ? tile.targets[at] + tile.moved[at] * inverse : tile.targets[at];
      float least = std::numeric_limits<float>::infinity(), value = 0;
      int best = 0;
      for (int q = 0; q < kSweepLevels; ++q) {
        float given = std::copysign(levels.values[q] * levels.step, t);
        if (tile.anchors != nullptr) {
          const float sum = tile.anchors[at] + given;
          given = std::bit_cast<float>((std::bit_cast<uint32_t>(sum) + 0x8000u) & 0xffff0000u) - tile.anchors[at];
        }
        const float unit = 1 / levels.step, rest = (t - given) * unit;
        const float loss = tile.row_cost[r] * tile.cost[c] * (rest * rest) + levels.bit_costs[q];
        if (loss < least) {
          least = loss;
          value = given;
          best = q;
        }
      }
      const float error = tile.targets[at] - value;
      tile.levels[at] = static_cast<int8_t>(std::signbit(t) ? -best : best);
      tile.targets[at] = error;
      tile.moved[at] = (t - value) * own;
      for (size_t later = c + 1; tile.root != nullptr && later < tile.columns; ++later)
        tile.moved[later * tile.stride + r] += error * tile.root[c * tile.root_stride + later];
    }
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class EveryTarget : public testing::TestWithParam<CpuTarget> {
 protected:
  EveryTarget() : before_(CurrentCpuTarget()) { ForceCpuTarget(GetParam()); }
  ~EveryTarget() override { ForceCpuTarget(before_); }

 private:
  const CpuTarget before_;
};

TEST_P(EveryTarget, SweepsAsTheFormulaSays) {
  SweepLevels levels;
  levels.step = 1e-3f;
  for (int q = 0; q < kSweepLevels; ++q) {
    levels.values[q] = q == 0 ? 0.0f : static_cast<float>(q) - 0.125f;
    levels.bit_costs[q] = 0.08f * static_cast<float>(q == 0 ? 1 : q + 2);
  }
  size_t zeros = 0, others = 0;
  for (const size_t columns : {size_t{1}, size_t{7}, kSweepColumns}) {
    for (const bool feedback : {false, true}) {
      for (const bool anchored : {false, true}) {
        Arrays own = RandomArrays(columns, static_cast<uint32_t>(columns)), expected = own;
        CurrentResidualSweep()(TileOf(own, columns, feedback, anchored), levels);
        Reference(TileOf(expected, columns, feedback, anchored), levels);
        const std::string where = std::to_string(columns) + " columns, feedback " + std::to_string(feedback) +
                                  ", anchored " + std::to_string(anchored);
        EXPECT_EQ(own.levels, expected.levels) << where;
        EXPECT_TRUE(SameBits(own.targets, expected.targets)) << where;
        EXPECT_TRUE(SameBits(own.moved, expected.moved)) << where;
        for (const int8_t q : own.levels) ++(q == 0 ? zeros : others);
      }
    }
  }
  EXPECT_GT(zeros, 100u);
  EXPECT_GT(others, 100u);
}

INSTANTIATE_TEST_SUITE_P(ResidualSweep, EveryTarget, testing::ValuesIn(AvailableCpuTargets()),
                         [](const auto& target) { return std::string(CpuTargetName(target.param)); });

}  // namespace
}  // namespace modelstore
