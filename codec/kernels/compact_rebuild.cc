#include "codec/kernels/compact_rebuild.h"

#include <algorithm>
#include <cstring>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/compact_rebuild_targets.h"
#include "codec/kernels/compact_round.h"
#include "codec/kernels/cpu_target.h"

namespace modelstore {
namespace {

// Types whose bytes no vector path knows. F32 and F64 need no dither.
template <DType kDType, typename U>
void RoundPlain(const std::byte* prediction, const float* sums, size_t n, uint64_t first, uint32_t seed, bool nearest,
                std::byte* out) {
  for (size_t i = 0; i < n; ++i) {
    U p;
    std::memcpy(&p, prediction + i * sizeof(U), sizeof(U));
    const uint32_t h =
        sizeof(U) > 2 || nearest ? kHalf : DitherOf(static_cast<uint32_t>(first + i), DitherKey(first + i, seed));
    p = RoundElement<kDType, U>(p, sums[i], h);
    std::memcpy(out + i * sizeof(U), &p, sizeof(U));
  }
}

// By a kernel, whose runs end where the index's high half changes.
void RoundByKernel(decltype(CompactKernels::round_bf16) kernel, const std::byte* prediction, const float* sums,
                   size_t n, uint64_t first, uint32_t seed, bool nearest, std::byte* out) {
  while (n > 0) {
    const uint32_t low = static_cast<uint32_t>(first);
    const size_t count = static_cast<size_t>(std::min<uint64_t>(n, (uint64_t{1} << 32) - low));
    kernel(prediction, sums, count, low, DitherKey(first, seed), nearest, out);
    prediction += count * 2;
    out += count * 2;
    sums += count;
    first += count;
    n -= count;
  }
}

}  // namespace

const CompactKernels& CurrentCompactKernels() {
  switch (CurrentCpuTarget()) {
#if defined(MODELSTORE_X86_KERNELS)
    case CpuTarget::kAvx512:
      return kCompactAvx512;
    case CpuTarget::kAvx2:
      return kCompactAvx2;
#endif
    default:
      return kCompactPlain;
  }
}

void RoundCompact(DType dtype, const std::byte* prediction, const float* sums, size_t n, uint64_t first, uint32_t seed,
                  bool nearest, std::byte* out) {
  switch (dtype) {
    case DType::kBF16:
      return RoundByKernel(CurrentCompactKernels().round_bf16, prediction, sums, n, first, seed, nearest, out);
    case DType::kF32:
      return RoundPlain<DType::kF32, uint32_t>(prediction, sums, n, first, seed, nearest, out);
    case DType::kF64:
      return RoundPlain<DType::kF64, uint64_t>(prediction, sums, n, first, seed, nearest, out);
    case DType::kF16:
      return RoundByKernel(CurrentCompactKernels().round_f16, prediction, sums, n, first, seed, nearest, out);
    case DType::kF8E4M3:
      return RoundPlain<DType::kF8E4M3, uint8_t>(prediction, sums, n, first, seed, nearest, out);
    default:
      return RoundPlain<DType::kF8E5M2, uint8_t>(prediction, sums, n, first, seed, nearest, out);
  }
}

}  // namespace modelstore
