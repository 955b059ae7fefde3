// Vector types and operations of one CPU target (layer: codec/kernels; private to it, included by its files alone).
// Any CPU: vectors of 4, as the compiler translates them.
//
// Each of these headers defines, in its unnamed namespace: kSimdLanes (floats of a vector), kTileRows (rows whose sums
// stay in registers), the vector types F (float) and U (uint32_t) of kSimdLanes, kIota (0, 1, ...), Max of two U,
// AnyAtLeast (some lane of a U reaches a uint32_t) and, all without alignment, LoadLevels (int8_t -> F), LevelTable
// (int8_t -> F by a table of kResidualLevels), LoadPatterns (uint16_t -> U) and StorePatterns (U -> uint16_t).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace modelstore {
namespace {

constexpr unsigned kSimdLanes = 4;
constexpr unsigned kTileRows = 4;
using F = float __attribute__((vector_size(16)));
using U = uint32_t __attribute__((vector_size(16)));

inline F LoadLevels(const int8_t* at) {
  return F{static_cast<float>(at[0]), static_cast<float>(at[1]), static_cast<float>(at[2]), static_cast<float>(at[3])};
}
// values[level modulo 16].
class LevelTable {
 public:
  explicit LevelTable(const float* values) { std::memcpy(values_, values, sizeof(values_)); }
  F operator()(const int8_t* at) const {
    return F{values_[at[0] & 15], values_[at[1] & 15], values_[at[2] & 15], values_[at[3] & 15]};
  }

 private:
  float values_[16];
};
constexpr U kIota = {0, 1, 2, 3};
inline bool AnyAtLeast(U a, uint32_t least) { return a[0] >= least || a[1] >= least || a[2] >= least || a[3] >= least; }
inline U Max(U a, U b) { return a > b ? a : b; }
inline U LoadPatterns(const std::byte* at) {
  uint16_t p[kSimdLanes];
  std::memcpy(p, at, sizeof(p));
  return U{p[0], p[1], p[2], p[3]};
}
inline void StorePatterns(U patterns, std::byte* at) {
  const uint16_t p[kSimdLanes] = {static_cast<uint16_t>(patterns[0]), static_cast<uint16_t>(patterns[1]),
                                  static_cast<uint16_t>(patterns[2]), static_cast<uint16_t>(patterns[3])};
  std::memcpy(at, p, sizeof(p));
}

}  // namespace
}  // namespace modelstore
