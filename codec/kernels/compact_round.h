// Rounding one element of a compact tensor (layer: codec/kernels). docs/format.md, "Compact tensors". Pure; for the CPU
// and for GPUs. The CPU's vector paths for 16 bits are in compact_rebuild_loops.h, and give the same.
#pragma once

#include <bit>
#include <cstdint>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/device_function.h"
#include "codec/kernels/value_map.h"

namespace modelstore {

// Magnitudes of a narrow type: patterns from here on are not finite.
MODELSTORE_DEVICE constexpr uint32_t FirstNotFinite(DType dtype) {
  return dtype == DType::kF8E4M3 ? 0x7f : FloatLayoutOf(dtype).exponent_mask << FloatLayoutOf(dtype).exponent_shift;
}

// |y| (finite or infinite) rounded to a magnitude of a type of fewer bits by the dither h: 16 bits.
MODELSTORE_DEVICE uint32_t DitheredMagnitude(float y, uint32_t h, const FloatLayout& layout, uint32_t largest) {
  constexpr unsigned kMantissa = 23;
  constexpr int kBias = 127, kMaxDropped = 40;  // bits; more leave nothing
  const uint32_t bits = std::bit_cast<uint32_t>(y) & 0x7fffffff;
  const int field = static_cast<int>(bits >> kMantissa);
  if (field == 0xff) return largest;
  const uint64_t mantissa = bits & ((1u << kMantissa) - 1);
  const uint64_t m = field == 0 ? mantissa : mantissa | 1u << kMantissa;
  const int exponent = (field > 1 ? field : 1) - kBias;
  // The type's exponent field of y, at least that of its subnormals.
  const int biased = exponent + static_cast<int>(layout.exponent_mask >> 1);
  const int dropped = static_cast<int>(kMantissa - layout.exponent_shift) + (biased < 1 ? 1 - biased : 0);
  if (dropped >= kMaxDropped) return 0;
  const uint64_t kept = (m + ((static_cast<uint64_t>(h) << dropped) >> 16)) >> dropped;
  // A carry out of the significand moves into the exponent by itself.
  const uint64_t magnitude = (static_cast<uint64_t>((biased > 1 ? biased : 1) - 1) << layout.exponent_shift) + kept;
  return magnitude < largest ? static_cast<uint32_t>(magnitude) : largest;
}

// A finite element of F16, E4M3 or E5M2 as a float: its magnitude in the place of a float's, times what the exponents'
// biases differ by; exact, for subnormals too.
MODELSTORE_DEVICE float WidenNarrow(uint32_t pattern, const FloatLayout& layout) {
  const uint32_t sign = pattern >> (layout.width_bits - 1) & 1;
  const uint32_t magnitude = pattern & ((1u << (layout.width_bits - 1)) - 1);
  const uint32_t scale = (254 - (layout.exponent_mask >> 1)) << 23;  // 2^(127 - bias)
  const float value = std::bit_cast<float>(magnitude << (23 - layout.exponent_shift)) * std::bit_cast<float>(scale);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign << 31);
}

// prediction + sum, rounded by the dither h, or to nearest with kHalf. U: the unsigned integer of the dtype's width.
template <DType kDType, typename U>
MODELSTORE_DEVICE U RoundElement(U prediction, float sum, uint32_t h) {
  if constexpr (kDType == DType::kBF16) {
    const uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(static_cast<uint32_t>(prediction) << 16) + sum);
    const uint32_t magnitude = ((bits & 0x7fffffff) + h) >> 16;
    const uint32_t limited = magnitude < 0x7f7f ? magnitude : 0x7f7f;
    return (prediction & 0x7f80) == 0x7f80 ? prediction : static_cast<U>(limited | (bits >> 16 & 0x8000));
  } else if constexpr (kDType == DType::kF32) {
    constexpr uint32_t kInfinity = 0x7f800000;
    if ((prediction & kInfinity) == kInfinity) return prediction;
    const uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(prediction) + sum);
    return (bits & kInfinity) == kInfinity ? (bits & 0x80000000) | (kInfinity - 1) : bits;
  } else if constexpr (kDType == DType::kF64) {
    constexpr uint64_t kInfinity = 0x7ff0000000000000;
    if ((prediction & kInfinity) == kInfinity) return prediction;
    const uint64_t bits = std::bit_cast<uint64_t>(std::bit_cast<double>(prediction) + static_cast<double>(sum));
    return (bits & kInfinity) == kInfinity ? (bits & 0x8000000000000000) | (kInfinity - 1) : bits;
  } else {
    constexpr FloatLayout kLayout = FloatLayoutOf(kDType);
    constexpr uint32_t kFirst = FirstNotFinite(kDType);
    constexpr uint32_t kSign = 1u << (kLayout.width_bits - 1);
    if ((prediction & (kSign - 1)) >= kFirst) return prediction;
    const float y = WidenNarrow(prediction, kLayout) + sum;
    const uint32_t magnitude = DitheredMagnitude(y, h, kLayout, kFirst - 1);
    return static_cast<U>(magnitude | (std::bit_cast<uint32_t>(y) >> 31 != 0 ? kSign : 0));
  }
}

}  // namespace modelstore
