// The source of every CPU target's ResidualSweep (layer: codec/kernels; private to it). Included once by each target's
// file, after its vectors (vectors_plain.h says which).
#pragma once

#include <cstring>

#include "codec/kernels/residual_sweep.h"
#include "codec/kernels/vector_bits.h"

namespace modelstore {
namespace {

static_assert(kSweepRows % kSimdLanes == 0);
constexpr uint32_t kSign = 0x80000000u;

inline F RoundedToBf16(F v) { return FloatOf((BitsOf(v) + 0x8000u) & 0xffff0000u); }

// The level of least cost for targets t, and what it gives.
template <bool kAnchored>
inline F Cheapest(F t, F anchor, F cost, const SweepLevels& levels, F* value) {
  const U sign = BitsOf(t) & kSign;
  const float unit = 1 / levels.step;
  F best{}, least{};
  for (int q = 0; q < kSweepLevels; ++q) {
    F given = FloatOf(BitsOf(F{} + levels.values[q] * levels.step) | sign);
    if (kAnchored) given = RoundedToBf16(anchor + given) - anchor;
    const F rest = (t - given) * unit;
    const F loss = cost * (rest * rest) + levels.bit_costs[q];
    if (q == 0) {
      least = loss;
      *value = given;
      continue;
    }
    const auto cheaper = loss < least;
    least = cheaper ? loss : least;
    *value = cheaper ? given : *value;
    best = cheaper ? F{} + static_cast<float>(q) : best;
  }
  return FloatOf(BitsOf(best) | sign);
}

template <bool kAnchored>
void SweepLanes(const SweepTile& tile, const SweepLevels& levels, size_t lane) {
  using Bytes = int8_t __attribute__((vector_size(kSimdLanes)));
  const F row_cost = Load(tile.row_cost + lane);
  for (size_t c = 0; c < tile.columns; ++c) {
    const size_t at = c * tile.stride + lane;
    const float* root = tile.root == nullptr ? nullptr : tile.root + c * tile.root_stride;
    const float own = root == nullptr ? 1.0f : root[c];
    const F target = Load(tile.targets + at);
    F t = target;
    if (root != nullptr) t += Load(tile.moved + at) * (1 / own);
    F value;
    const F level =
        Cheapest<kAnchored>(t, kAnchored ? Load(tile.anchors + at) : F{}, row_cost * tile.cost[c], levels, &value);
    const Bytes narrow = __builtin_convertvector(level, Bytes);
    std::memcpy(tile.levels + at, &narrow, sizeof(narrow));
    const F error = target - value;
    Store(error, tile.targets + at);
    Store((t - value) * own, tile.moved + at);
    if (root == nullptr) continue;
    for (size_t later = c + 1; later < tile.columns; ++later) {
      float* moved = tile.moved + later * tile.stride + lane;
      Store(Load(moved) + error * root[later], moved);
    }
  }
}

void Sweep(const SweepTile& tile, const SweepLevels& levels) {
  for (size_t lane = 0; lane < kSweepRows; lane += kSimdLanes) {
    if (tile.anchors != nullptr) {
      SweepLanes<true>(tile, levels, lane);
    } else {
      SweepLanes<false>(tile, levels, lane);
    }
  }
}

}  // namespace
}  // namespace modelstore
