// The source of every CPU target's CompactKernels (layer: codec/kernels; private to it). Included once by each target's
// file, after that has defined, in its unnamed namespace: kLanes (floats of a vector), kTileRows (rows whose sums stay
// in registers), the vector types F (float), I (int32_t) and U (uint32_t) of kLanes, and LoadLevels (int8_t -> F),
// LoadPatterns (uint16_t -> U), StorePatterns (U -> uint16_t), all without alignment.
#pragma once

#include <cstring>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/compact_rebuild.h"

namespace modelstore {
namespace {

constexpr unsigned kTileVectors = 2;
static_assert(kStripColumns % (kTileVectors * kLanes) == 0);

inline F Load(const float* at) {
  F v;
  std::memcpy(&v, at, sizeof(v));
  return v;
}
inline void Store(F v, float* at) { std::memcpy(at, &v, sizeof(v)); }
inline U BitsOf(F v) {
  U u;
  std::memcpy(&u, &v, sizeof(u));
  return u;
}
inline F FloatOf(U u) {
  F v;
  std::memcpy(&v, &u, sizeof(v));
  return v;
}

template <unsigned kRows>
inline void AccumulateTile(const float* weights, size_t rank, const int8_t* right, float* sums) {
  F acc[kRows][kTileVectors] = {};
  for (size_t k = 0; k < rank; ++k, right += kStripColumns) {
    F v[kTileVectors];
    for (unsigned t = 0; t < kTileVectors; ++t) v[t] = LoadLevels(right + t * kLanes);
#pragma GCC unroll 8
    for (unsigned r = 0; r < kRows; ++r) {
      const float w = weights[r * rank + k];
      for (unsigned t = 0; t < kTileVectors; ++t) acc[r][t] += w * v[t];
    }
  }
#pragma GCC unroll 8
  for (unsigned r = 0; r < kRows; ++r)
    for (unsigned t = 0; t < kTileVectors; ++t) Store(acc[r][t], sums + r * kPanelColumns + t * kLanes);
}

template <unsigned kRows>
inline void AccumulateRows(const float* weights, size_t rows, size_t rank, const int8_t* right, size_t strips,
                           float* sums) {
  for (; rows >= kRows; rows -= kRows, weights += kRows * rank, sums += kRows * kPanelColumns) {
    for (size_t s = 0; s < strips; ++s)
      for (size_t j = 0; j < kStripColumns; j += kTileVectors * kLanes)
        AccumulateTile<kRows>(weights, rank, right + s * rank * kStripColumns + j, sums + s * kStripColumns + j);
  }
  if constexpr (kRows > 1) AccumulateRows<kRows / 2>(weights, rows, rank, right, strips, sums);
}

void Accumulate(const float* weights, size_t rows, size_t rank, const int8_t* right, size_t strips, float* sums) {
  AccumulateRows<kTileRows>(weights, rows, rank, right, strips, sums);
}

inline F Residual(F q, const float* biases, float step) {
  const U sign = BitsOf(q) & 0x80000000u;
  const F magnitude = FloatOf(BitsOf(q) & 0x7fffffffu);
  const F bias = magnitude < 1.5f ? (magnitude < 0.5f ? F{} : F{} + biases[0])
                                  : (magnitude < 2.5f ? F{} + biases[1] : F{} + biases[2]);
  return FloatOf(BitsOf(magnitude - bias) ^ sign) * step;
}

void AddResidual(const int8_t* levels, size_t n, const float* biases, float step, float* sums) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(Load(sums + i) + Residual(LoadLevels(levels + i), biases, step), sums + i);
  if (i == n) return;
  int8_t last_levels[kLanes] = {};
  float last[kLanes] = {};
  std::memcpy(last_levels, levels + i, n - i);
  std::memcpy(last, sums + i, (n - i) * sizeof(float));
  Store(Load(last) + Residual(LoadLevels(last_levels), biases, step), last);
  std::memcpy(sums + i, last, (n - i) * sizeof(float));
}

inline U Rounded(U prediction, F sum, U element, uint32_t key) {
  const U bits = BitsOf(FloatOf(prediction << 16) + sum);
  U x = element ^ key;
  x ^= x >> 16;
  x *= kDitherMultiplier1;
  x ^= x >> 15;
  x *= kDitherMultiplier2;
  const U magnitude = ((bits & 0x7fffffffu) + (x >> 16)) >> 16;
  const U limited = magnitude < 0x7f7fu ? magnitude : U{} + 0x7f7fu;
  return (prediction & 0x7f80u) == 0x7f80u ? prediction : limited | (bits >> 16 & 0x8000u);
}

void RoundBf16(const std::byte* prediction, const float* sums, size_t n, uint32_t low, uint32_t key, std::byte* out) {
  U element;
  for (unsigned i = 0; i < kLanes; ++i) element[i] = low + i;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes, element += kLanes)
    StorePatterns(Rounded(LoadPatterns(prediction + i * 2), Load(sums + i), element, key), out + i * 2);
  if (i == n) return;
  std::byte last[kLanes * 2] = {};
  float last_sums[kLanes] = {};
  std::memcpy(last, prediction + i * 2, (n - i) * 2);
  std::memcpy(last_sums, sums + i, (n - i) * sizeof(float));
  StorePatterns(Rounded(LoadPatterns(last), Load(last_sums), element, key), last);
  std::memcpy(out + i * 2, last, (n - i) * 2);
}

}  // namespace
}  // namespace modelstore
