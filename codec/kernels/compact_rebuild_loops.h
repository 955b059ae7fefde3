// The source of every CPU target's CompactKernels (layer: codec/kernels; private to it). Included once by each target's
// file, after its vectors (vectors_plain.h says which).
#pragma once

#include <cstring>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/compact_rebuild.h"
#include "codec/kernels/vector_bits.h"

namespace modelstore {
namespace {

constexpr unsigned kTileVectors = 2;
static_assert(kStripColumns % (kTileVectors * kSimdLanes) == 0);

template <unsigned kRows>
inline void AccumulateTile(const float* weights, size_t rank, const float* right, float* sums) {
  F acc[kRows][kTileVectors] = {};
  for (size_t k = 0; k < rank; ++k, right += kStripColumns) {
    F v[kTileVectors];
    for (unsigned t = 0; t < kTileVectors; ++t) v[t] = Load(right + t * kSimdLanes);
#pragma GCC unroll 8
    for (unsigned r = 0; r < kRows; ++r) {
      const float w = weights[r * rank + k];
      for (unsigned t = 0; t < kTileVectors; ++t) acc[r][t] += w * v[t];
    }
  }
#pragma GCC unroll 8
  for (unsigned r = 0; r < kRows; ++r)
    for (unsigned t = 0; t < kTileVectors; ++t) Store(acc[r][t], sums + r * kPanelColumns + t * kSimdLanes);
}

template <unsigned kRows>
inline void AccumulateRows(const float* weights, size_t rows, size_t rank, const float* right, size_t strips,
                           float* sums) {
  for (; rows >= kRows; rows -= kRows, weights += kRows * rank, sums += kRows * kPanelColumns) {
    for (size_t s = 0; s < strips; ++s)
      for (size_t j = 0; j < kStripColumns; j += kTileVectors * kSimdLanes)
        AccumulateTile<kRows>(weights, rank, right + s * rank * kStripColumns + j, sums + s * kStripColumns + j);
  }
  if constexpr (kRows > 1) AccumulateRows<kRows / 2>(weights, rows, rank, right, strips, sums);
}

void Accumulate(const float* weights, size_t rows, size_t rank, const float* right, size_t strips, float* sums) {
  AccumulateRows<kTileRows>(weights, rows, rank, right, strips, sums);
}

// sums[i] += value(levels + i), a vector at a time; the last one through a copy.
template <typename Value>
inline void AddValues(const int8_t* levels, size_t n, Value value, float* sums) {
  size_t i = 0;
  for (; i + kSimdLanes <= n; i += kSimdLanes) Store(Load(sums + i) + value(levels + i), sums + i);
  if (i == n) return;
  int8_t last_levels[kSimdLanes] = {};
  float last[kSimdLanes] = {};
  std::memcpy(last_levels, levels + i, n - i);
  std::memcpy(last, sums + i, (n - i) * sizeof(float));
  Store(Load(last) + value(last_levels), last);
  std::memcpy(sums + i, last, (n - i) * sizeof(float));
}

void AddResidual(const int8_t* levels, size_t n, const float* values, float* sums) {
  AddValues(levels, n, LevelTable(values), sums);
}

void AddWideResidual(const int8_t* levels, size_t n, const float* biases, float step, float* sums) {
  const F first = F{} + biases[0], second = F{} + biases[1], third = F{} + biases[2];
  const auto value = [=](const int8_t* at) {
    const U bits = BitsOf(LoadLevels(at));
    const F magnitude = FloatOf(bits & 0x7fffffffu);
    const F bias = magnitude < 1.5f ? (magnitude < 0.5f ? F{} : first) : (magnitude < 2.5f ? second : third);
    return FloatOf(BitsOf(magnitude - bias) ^ (bits & 0x80000000u)) * step;
  };
  AddValues(levels, n, value, sums);
}

// The dither of consecutive elements that differ in their low 16 bits alone: their hash begins with x ^ (x >> 16),
// whose right side is the same for all.
class Dither {
 public:
  Dither(uint32_t low, uint32_t key) : key_(key ^ ((low ^ key) >> 16)), element_(kIota + low) {}
  U Next() {
    U x = element_ ^ key_;
    element_ += kSimdLanes;
    x *= kDitherMultiplier1;
    x ^= x >> 15;
    x *= kDitherMultiplier2;
    return x >> 16;
  }

 private:
  uint32_t key_;
  U element_;
};

struct Nearest {
  U Next() { return U{} + kHalf; }
};

constexpr uint32_t kMagnitude = 0x7fffffff;

// A round: what adds sums to patterns of 16 bits. Its operator() may leave what it cannot do, which Failed() then
// tells; Careful does it all.
struct RoundBf16Step {
  static constexpr uint32_t kNotFinite = 0x7f800000;
  U largest = {};

  U operator()(U prediction, F sum, U dither) {
    const U bits = BitsOf(FloatOf(prediction << 16) + sum);
    const U magnitude = (bits & kMagnitude) + dither;
    largest = Max(largest, magnitude);
    return ((bits & ~kMagnitude) | (magnitude & kMagnitude)) >> 16;
  }
  bool Failed() const { return AnyAtLeast(largest, kNotFinite); }
  static U Careful(U prediction, F sum, U dither) {
    const U bits = BitsOf(FloatOf(prediction << 16) + sum);
    const U magnitude = ((bits & kMagnitude) + dither) >> 16;
    const U limited = magnitude < 0x7f7fu ? magnitude : U{} + 0x7f7fu;
    return (prediction & 0x7f80u) == 0x7f80u ? prediction : limited | (bits >> 16 & 0x8000u);
  }
};

struct RoundF16Step {
  U operator()(U prediction, F sum, U dither) const { return Careful(prediction, sum, dither); }
  bool Failed() const { return false; }
  static U Careful(U prediction, F sum, U dither) {
    // 2^112: the difference of the exponents' biases; exact, for subnormals too.
    const F widened = FloatOf((prediction & 0x7fffu) << 13) * 0x1p112f;
    const U bits = BitsOf(FloatOf(BitsOf(widened) | (prediction & 0x8000u) << 16) + sum);
    const U exponent = bits >> 23 & 0xffu;
    const U significand = exponent == 0 ? bits & 0x7fffffu : (bits & 0x7fffffu) | 0x800000u;
    // floor((m + floor(h 2^d / 2^16)) / 2^d) = floor((floor(m 2^16 / 2^d) + h) / 2^16), d being 13 for normal numbers.
    const U below = exponent < 113 ? 113 - exponent : U{};
    const U kept = ((significand << 3 >> (below < 31 ? below : U{} + 31)) + dither) >> 16;
    const U magnitude = ((exponent < 113 ? U{} : exponent - 113) << 10) + kept;
    const U limited = magnitude < 0x7bffu ? magnitude : U{} + 0x7bffu;
    return (prediction & 0x7c00u) == 0x7c00u ? prediction : limited | (bits >> 16 & 0x8000u);
  }
};

template <typename Step, typename Offsets>
void RoundRun(const std::byte* prediction, const float* sums, size_t n, const Offsets& offsets, std::byte* out) {
  Step step;
  Offsets next = offsets;
  size_t i = 0;
  for (; i + kSimdLanes <= n; i += kSimdLanes)
    StorePatterns(step(LoadPatterns(prediction + i * 2), Load(sums + i), next.Next()), out + i * 2);
  if (step.Failed()) {
    next = offsets;
    for (i = 0; i + kSimdLanes <= n; i += kSimdLanes)
      StorePatterns(Step::Careful(LoadPatterns(prediction + i * 2), Load(sums + i), next.Next()), out + i * 2);
  }
  if (i == n) return;
  std::byte last[kSimdLanes * 2] = {};
  float last_sums[kSimdLanes] = {};
  std::memcpy(last, prediction + i * 2, (n - i) * 2);
  std::memcpy(last_sums, sums + i, (n - i) * sizeof(float));
  StorePatterns(Step::Careful(LoadPatterns(last), Load(last_sums), next.Next()), last);
  std::memcpy(out + i * 2, last, (n - i) * 2);
}

template <typename Step>
void Round(const std::byte* prediction, const float* sums, size_t n, uint32_t low, uint32_t key, bool nearest,
           std::byte* out) {
  if (nearest) return RoundRun<Step>(prediction, sums, n, Nearest(), out);
  while (n > 0) {
    const size_t left = 0x10000 - (low & 0xffff);
    const size_t count = n < left ? n : left;
    RoundRun<Step>(prediction, sums, count, Dither(low, key), out);
    prediction += count * 2;
    sums += count;
    out += count * 2;
    low += static_cast<uint32_t>(count);
    n -= count;
  }
}

constexpr CompactKernels kKernels = {Accumulate, AddResidual, AddWideResidual, Round<RoundBf16Step>,
                                     Round<RoundF16Step>};

}  // namespace
}  // namespace modelstore
