// Vector types and operations of one CPU target (layer: codec/kernels; private to it, included by its files alone).
// AVX2: vectors of 8.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace modelstore {
namespace {

constexpr unsigned kSimdLanes = 8;
constexpr unsigned kTileRows = 4;
using F = float __attribute__((vector_size(32)));
using U = uint32_t __attribute__((vector_size(32)));

inline F LoadLevels(const int8_t* at) {
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}
// values[level modulo 16].
class LevelTable {
 public:
  explicit LevelTable(const float* values) : low_(_mm256_loadu_ps(values)), high_(_mm256_loadu_ps(values + 8)) {}
  F operator()(const int8_t* at) const {
    const __m256i levels = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(levels, 28));  // bit 3 at the top
    return (F)_mm256_blendv_ps(_mm256_permutevar8x32_ps(low_, levels), _mm256_permutevar8x32_ps(high_, levels), upper);
  }

 private:
  __m256 low_, high_;
};
constexpr U kIota = {0, 1, 2, 3, 4, 5, 6, 7};
inline bool AnyAtLeast(U a, uint32_t least) {
  const __m256i larger = _mm256_max_epu32((__m256i)a, _mm256_set1_epi32(static_cast<int>(least)));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi32(larger, (__m256i)a)) != 0;
}
inline U Max(U a, U b) { return (U)_mm256_max_epu32((__m256i)a, (__m256i)b); }
inline U LoadPatterns(const std::byte* at) {
  return (U)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline void StorePatterns(U patterns, std::byte* at) {
  const __m256i packed = _mm256_packus_epi32((__m256i)patterns, (__m256i)patterns);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

}  // namespace
}  // namespace modelstore
