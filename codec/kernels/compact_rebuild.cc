#include "codec/kernels/compact_rebuild.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/compact_rebuild_targets.h"
#include "codec/kernels/convert.h"
#include "codec/kernels/cpu_target.h"
#include "codec/kernels/value_map.h"

namespace modelstore {
namespace {

constexpr unsigned kF32Mantissa = 23;
constexpr int kF32Bias = 127;
constexpr int kMaxDropped = 40;  // bits; more leave nothing

// Magnitudes of `dtype`: patterns from here on are not finite.
uint64_t FirstNotFinite(DType dtype) {
  const FloatLayout layout = FloatLayoutOf(dtype);
  if (dtype == DType::kF8E4M3) return 0x7f;
  return uint64_t{layout.exponent_mask} << layout.exponent_shift;
}

// |y| (finite or infinite) rounded to a magnitude of a narrower type by the dither h.
uint64_t DitheredMagnitude(float y, uint32_t h, const FloatLayout& layout, uint64_t largest) {
  const uint32_t bits = std::bit_cast<uint32_t>(y) & 0x7fffffff;
  const int exponent_field = static_cast<int>(bits >> kF32Mantissa);
  if (exponent_field == 0xff) return largest;
  const uint64_t mantissa = bits & ((1u << kF32Mantissa) - 1);
  const uint64_t m = exponent_field == 0 ? mantissa : mantissa | 1u << kF32Mantissa;
  const int exponent = std::max(exponent_field, 1) - kF32Bias;
  // The type's exponent field of y, at least that of its subnormals.
  const int biased = exponent + static_cast<int>(layout.exponent_mask >> 1);
  const int dropped = static_cast<int>(kF32Mantissa - layout.exponent_shift) + std::max(0, 1 - biased);
  if (dropped >= kMaxDropped) return 0;
  const uint64_t kept = (m + ((uint64_t{h} << dropped) >> 16)) >> dropped;
  // A carry out of the significand moves into the exponent by itself.
  const uint64_t magnitude = (static_cast<uint64_t>(std::max(biased, 1) - 1) << layout.exponent_shift) + kept;
  return std::min(magnitude, largest);
}

void RoundF8(DType dtype, const std::byte* prediction, const float* sums, size_t n, uint64_t first, uint32_t seed,
             bool nearest, std::byte* out) {
  const FloatLayout layout = FloatLayoutOf(dtype);
  const uint64_t first_not_finite = FirstNotFinite(dtype);
  constexpr uint8_t kSign = 0x80;
  for (size_t i = 0; i < n; ++i) {
    uint8_t p = std::to_integer<uint8_t>(prediction[i]);
    if ((p & ~kSign & 0xff) < first_not_finite) {
      const float y = static_cast<float>(std::bit_cast<double>(WidenToF64(dtype, p))) + sums[i];
      const uint32_t h = nearest ? kHalf : DitherOf(static_cast<uint32_t>(first + i), DitherKey(first + i, seed));
      p = static_cast<uint8_t>(DitheredMagnitude(y, h, layout, first_not_finite - 1) | (std::signbit(y) ? kSign : 0));
    }
    out[i] = static_cast<std::byte>(p);
  }
}

// F32 and F64 need no dither.
template <typename T, typename P>
void AddWide(DType dtype, const std::byte* prediction, const float* sums, size_t n, std::byte* out) {
  const P first_not_finite = static_cast<P>(FirstNotFinite(dtype));
  constexpr P kSign = static_cast<P>(P{1} << (kWidth<P> - 1));
  for (size_t i = 0; i < n; ++i) {
    P p;
    std::memcpy(&p, prediction + i * sizeof(P), sizeof(P));
    if ((p & static_cast<P>(~kSign)) < first_not_finite) {
      p = std::bit_cast<P>(static_cast<T>(std::bit_cast<T>(p) + static_cast<T>(sums[i])));
      const P magnitude = p & static_cast<P>(~kSign);
      p = (p & kSign) | (magnitude < first_not_finite ? magnitude : first_not_finite - 1);
    }
    std::memcpy(out + i * sizeof(P), &p, sizeof(P));
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
      return AddWide<float, uint32_t>(dtype, prediction, sums, n, out);
    case DType::kF64:
      return AddWide<double, uint64_t>(dtype, prediction, sums, n, out);
    case DType::kF16:
      return RoundByKernel(CurrentCompactKernels().round_f16, prediction, sums, n, first, seed, nearest, out);
    default:
      return RoundF8(dtype, prediction, sums, n, first, seed, nearest, out);
  }
}

}  // namespace modelstore
