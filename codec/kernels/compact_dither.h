// The dither of compact tensors: a hash of an element's index (layer: codec/kernels). docs/format.md, "Compact
// tensors". Pure.
#pragma once

#include <cstdint>

namespace modelstore {

inline constexpr uint32_t kDitherHighMultiplier = 0x85ebca6b;
inline constexpr uint32_t kDitherMultiplier1 = 0x7feb352d;
inline constexpr uint32_t kDitherMultiplier2 = 0x846ca68b;

// What stands for the dither when rounding to nearest.
inline constexpr uint32_t kHalf = 0x8000;

// What is the same for all elements of one high half.
constexpr uint32_t DitherKey(uint64_t element, uint32_t seed) {
  return static_cast<uint32_t>(element >> 32) * kDitherHighMultiplier ^ seed;
}

// 16 bits.
constexpr uint32_t DitherOf(uint32_t low, uint32_t key) {
  uint32_t x = low ^ key;
  x ^= x >> 16;
  x *= kDitherMultiplier1;
  x ^= x >> 15;
  x *= kDitherMultiplier2;
  return x >> 16;
}

}  // namespace modelstore
