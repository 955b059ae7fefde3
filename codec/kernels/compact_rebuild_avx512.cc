// AVX-512: vectors of 16.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace modelstore {
namespace {

constexpr unsigned kLanes = 16;
constexpr unsigned kTileRows = 8;
using F = float __attribute__((vector_size(64)));
using I = int32_t __attribute__((vector_size(64)));
using U = uint32_t __attribute__((vector_size(64)));

inline F LoadLevels(const int8_t* at) {
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
inline U LoadPatterns(const std::byte* at) {
  return (U)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline void StorePatterns(U patterns, std::byte* at) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16((__m512i)patterns));
}

}  // namespace
}  // namespace modelstore

#include "codec/kernels/compact_rebuild_loops.h"
#include "codec/kernels/compact_rebuild_targets.h"

namespace modelstore {

const CompactKernels kCompactAvx512 = {Accumulate, AddResidual, RoundBf16};

}  // namespace modelstore
