// Any CPU: vectors of 4, as the compiler translates them.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace modelstore {
namespace {

constexpr unsigned kLanes = 4;
constexpr unsigned kTileRows = 4;
using F = float __attribute__((vector_size(16)));
using I = int32_t __attribute__((vector_size(16)));
using U = uint32_t __attribute__((vector_size(16)));

inline F LoadLevels(const int8_t* at) {
  return F{static_cast<float>(at[0]), static_cast<float>(at[1]), static_cast<float>(at[2]), static_cast<float>(at[3])};
}
inline U LoadPatterns(const std::byte* at) {
  uint16_t p[kLanes];
  std::memcpy(p, at, sizeof(p));
  return U{p[0], p[1], p[2], p[3]};
}
inline void StorePatterns(U patterns, std::byte* at) {
  const uint16_t p[kLanes] = {static_cast<uint16_t>(patterns[0]), static_cast<uint16_t>(patterns[1]),
                              static_cast<uint16_t>(patterns[2]), static_cast<uint16_t>(patterns[3])};
  std::memcpy(at, p, sizeof(p));
}

}  // namespace
}  // namespace modelstore

#include "codec/kernels/compact_rebuild_loops.h"
#include "codec/kernels/compact_rebuild_targets.h"

namespace modelstore {

const CompactKernels kCompactPlain = {Accumulate, AddResidual, RoundBf16};

}  // namespace modelstore
