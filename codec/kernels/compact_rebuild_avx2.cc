// AVX2: vectors of 8.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace modelstore {
namespace {

constexpr unsigned kLanes = 8;
constexpr unsigned kTileRows = 4;
using F = float __attribute__((vector_size(32)));
using I = int32_t __attribute__((vector_size(32)));
using U = uint32_t __attribute__((vector_size(32)));

inline F LoadLevels(const int8_t* at) {
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}
inline U LoadPatterns(const std::byte* at) {
  return (U)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline void StorePatterns(U patterns, std::byte* at) {
  const __m256i packed = _mm256_packus_epi32((__m256i)patterns, (__m256i)patterns);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

}  // namespace
}  // namespace modelstore

#include "codec/kernels/compact_rebuild_loops.h"
#include "codec/kernels/compact_rebuild_targets.h"

namespace modelstore {

const CompactKernels kCompactAvx2 = {Accumulate, AddResidual, RoundBf16};

}  // namespace modelstore
