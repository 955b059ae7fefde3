// Vector types and operations of one CPU target (layer: codec/kernels; private to it, included by its files alone).
// AVX-512: vectors of 16.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace modelstore {
namespace {

constexpr unsigned kSimdLanes = 16;
constexpr unsigned kTileRows = 8;
using F = float __attribute__((vector_size(64)));
using U = uint32_t __attribute__((vector_size(64)));

inline F LoadLevels(const int8_t* at) {
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
// values[level modulo 16].
class LevelTable {
 public:
  explicit LevelTable(const float* values) : values_(_mm512_loadu_ps(values)) {}
  F operator()(const int8_t* at) const {
    const __m512i levels = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    return (F)_mm512_permutexvar_ps(levels, values_);
  }

 private:
  __m512 values_;
};
constexpr U kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline bool AnyAtLeast(U a, uint32_t least) {
  return _mm512_cmpge_epu32_mask((__m512i)a, _mm512_set1_epi32(static_cast<int>(least))) != 0;
}
inline U Max(U a, U b) { return (U)_mm512_max_epu32((__m512i)a, (__m512i)b); }
inline U LoadPatterns(const std::byte* at) {
  return (U)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline void StorePatterns(U patterns, std::byte* at) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16((__m512i)patterns));
}

}  // namespace
}  // namespace modelstore
