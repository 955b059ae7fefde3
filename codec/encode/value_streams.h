// Element bytes -> coded values with their contexts (layer: codec/encode; shared by statistics and encoding, so that
// both see the same). Pure.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "codec/kernels/rans_tables.h"
#include "codec/kernels/value_map.h"
#include "codec/support/bytes.h"

namespace modelstore {

using ClassThresholds = std::array<uint32_t, kSelfClasses - 1>;

// The upper 16 bits of a pattern's magnitude: what classes go by.
template <typename U>
constexpr uint32_t CoarseMagnitude(U pattern) {
  const U magnitude = static_cast<U>(pattern & static_cast<U>(static_cast<U>(~U{0}) >> 1));
  if constexpr (kWidth < U >> 16) return static_cast<uint32_t>(magnitude >> (kWidth<U> - 16));
  return static_cast<uint32_t>(magnitude);
}

// What a chunk's class goes by: the mean of its magnitudes; of tokens (kU16), whose ranks grow with a power of the
// levels' spread, that of the ranks' logarithms.
template <typename U>
uint32_t ChunkMeasure(DType coded_dtype, const std::byte* patterns, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) {
    U p;
    std::memcpy(&p, patterns + i * sizeof(U), sizeof(U));
    sum += coded_dtype == DType::kU16 ? static_cast<uint32_t>(std::bit_width(SelfValue(p, false))) << 8
                                      : CoarseMagnitude(p);
  }
  return n == 0 ? 0 : static_cast<uint32_t>(sum / n);
}

inline uint8_t ClassOfMeasure(uint32_t measure, const ClassThresholds& thresholds) {
  uint8_t c = 0;
  for (const uint32_t t : thresholds) c = static_cast<uint8_t>(c + (measure > t ? 1 : 0));
  return c;
}

// values[i] and contexts[i] of a delta.
template <typename U>
void DeltaValues(const std::byte* patterns, const std::byte* predictions, size_t n, FloatLayout layout,
                 uint32_t exponent_low, U* values, uint8_t* contexts) {
  for (size_t i = 0; i < n; ++i) {
    U p, b;
    std::memcpy(&p, patterns + i * sizeof(U), sizeof(U));
    std::memcpy(&b, predictions + i * sizeof(U), sizeof(U));
    values[i] = DeltaValue(p, b);
    const int32_t e = static_cast<int32_t>(static_cast<uint32_t>(b >> layout.exponent_shift) & layout.exponent_mask);
    contexts[i] =
        static_cast<uint8_t>(std::clamp<int32_t>(e - static_cast<int32_t>(exponent_low), 0, kDeltaContexts - 1));
  }
}

template <typename U>
void SelfValues(const std::byte* patterns, size_t n, bool low_bit, U* values) {
  for (size_t i = 0; i < n; ++i) {
    U p;
    std::memcpy(&p, patterns + i * sizeof(U), sizeof(U));
    values[i] = SelfValue(p, low_bit);
  }
}

}  // namespace modelstore
