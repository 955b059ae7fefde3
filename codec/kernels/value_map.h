// Bit patterns <-> the integers that are entropy-coded (layer: codec/kernels). Pure, branch-free, any width.
//
// W-bit patterns are unsigned integers U. Every map is a bijection on W bits, so NaN payloads, infinities, both zeros
// and denormals survive. docs/format.md, "Coded values".
#pragma once

#include <cstdint>
#include <type_traits>

#include "codec/tensor/dtype.h"

namespace modelstore {

// Where a float's exponent sits in its pattern.
struct FloatLayout {
  uint32_t width_bits = 0;
  uint32_t exponent_shift = 0;  // = mantissa bits
  uint32_t exponent_mask = 0;   // after shifting
};

// Precondition: DTypeIsFloat(dtype), or kU16 (tokens, which are self-coded: only the width counts).
constexpr FloatLayout FloatLayoutOf(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3:
      return {8, 3, 0xf};
    case DType::kF8E5M2:
      return {8, 2, 0x1f};
    case DType::kF16:
      return {16, 10, 0x1f};
    case DType::kBF16:
      return {16, 7, 0xff};
    case DType::kU16:
      return {16, 0, 0};
    case DType::kF32:
      return {32, 23, 0xff};
    case DType::kF64:
      return {64, 52, 0x7ff};
    default:
      return {};
  }
}

template <typename U>
inline constexpr unsigned kWidth = sizeof(U) * 8;

// Order-preserving: a < b as numbers implies Ordered(a) < Ordered(b).
template <typename U>
constexpr U Ordered(U pattern) {
  using S = std::make_signed_t<U>;
  constexpr U kSign = static_cast<U>(U{1} << (kWidth<U> - 1));
  return static_cast<U>(pattern ^ (static_cast<U>(static_cast<S>(pattern) >> (kWidth<U> - 1)) | kSign));
}

template <typename U>
constexpr U FromOrdered(U ordered) {
  using S = std::make_signed_t<U>;
  constexpr U kSign = static_cast<U>(U{1} << (kWidth<U> - 1));
  // Top bit set: the pattern was positive (flip the sign back); clear: negative (flip all).
  return static_cast<U>(ordered ^
                        (static_cast<U>(~static_cast<U>(static_cast<S>(ordered) >> (kWidth<U> - 1))) | kSign));
}

template <typename U>
constexpr U ZigZag(U difference) {
  using S = std::make_signed_t<U>;
  return static_cast<U>(static_cast<U>(difference << 1) ^
                        static_cast<U>(static_cast<S>(difference) >> (kWidth<U> - 1)));
}

template <typename U>
constexpr U UnZigZag(U value) {
  return static_cast<U>(static_cast<U>(value >> 1) ^ static_cast<U>(U{0} - static_cast<U>(value & 1)));
}

// Coded value of a delta element and its inverse.
template <typename U>
constexpr U DeltaValue(U pattern, U prediction) {
  return ZigZag(static_cast<U>(Ordered(pattern) - Ordered(prediction)));
}
template <typename U>
constexpr U FromDeltaValue(U value, U prediction) {
  return FromOrdered(static_cast<U>(Ordered(prediction) + UnZigZag(value)));
}

// Coded value of a self-coded element: magnitude above, sign lowest; with low_bit the magnitude's lowest bit on top.
template <typename U>
constexpr U SelfValue(U pattern, bool low_bit) {
  constexpr unsigned kTop = kWidth<U> - 1;
  const U sign = static_cast<U>(pattern >> kTop);
  const U magnitude = static_cast<U>(pattern << 1);  // magnitude << 1
  if (!low_bit) return static_cast<U>(magnitude | sign);
  return static_cast<U>(static_cast<U>((magnitude >> 2) << 1) |
                        static_cast<U>(static_cast<U>((magnitude >> 1) & 1) << kTop) | sign);
}
template <typename U>
constexpr U FromSelfValue(U value, bool low_bit) {
  constexpr unsigned kTop = kWidth<U> - 1;
  const U sign = static_cast<U>(static_cast<U>(value & 1) << kTop);
  if (!low_bit) return static_cast<U>(static_cast<U>(value >> 1) | sign);
  // value = low | high magnitude bits (W - 2 of them) | sign
  const U high = static_cast<U>(static_cast<U>(value << 1) >> 2);  // magnitude >> 1
  const U low = static_cast<U>(value >> kTop);
  return static_cast<U>(static_cast<U>(high << 1) | low | sign);
}

}  // namespace modelstore
