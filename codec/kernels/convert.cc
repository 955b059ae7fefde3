#include "codec/kernels/convert.h"

#include <bit>
#include <cstring>

#include "codec/kernels/value_map.h"

namespace modelstore {
namespace {

constexpr unsigned kF64Mantissa = 52;
constexpr uint64_t kF64ExponentMask = 0x7ff;
constexpr int kF64Bias = 1023;
constexpr uint64_t kF64Infinity = kF64ExponentMask << kF64Mantissa;

int Bias(const FloatLayout& l) { return static_cast<int>(l.exponent_mask >> 1); }

template <typename From, typename To>
void Convert(DType from, DType to, const std::byte* in, std::byte* out, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    From pattern;
    std::memcpy(&pattern, in + i * sizeof(From), sizeof(From));
    const To result = static_cast<To>(NarrowFromF64(to, WidenToF64(from, pattern)));
    std::memcpy(out + i * sizeof(To), &result, sizeof(To));
  }
}

template <typename From>
void ConvertFrom(DType from, DType to, const std::byte* in, std::byte* out, size_t n) {
  switch (DTypeBytes(to)) {
    case 1:
      return Convert<From, uint8_t>(from, to, in, out, n);
    case 2:
      return Convert<From, uint16_t>(from, to, in, out, n);
    case 4:
      return Convert<From, uint32_t>(from, to, in, out, n);
    default:
      return Convert<From, uint64_t>(from, to, in, out, n);
  }
}

void Bf16ToF32(const std::byte* in, std::byte* out, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    uint16_t p;
    std::memcpy(&p, in + i * 2, 2);
    const uint32_t wide = uint32_t{p} << 16;
    std::memcpy(out + i * 4, &wide, 4);
  }
}

void F32ToBf16(const std::byte* in, std::byte* out, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    uint32_t p;
    std::memcpy(&p, in + i * 4, 4);
    const bool nan = (p & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = p + 0x7fff + ((p >> 16) & 1);
    const uint16_t r = static_cast<uint16_t>(nan ? (p >> 16) | 0x40 : rounded >> 16);
    std::memcpy(out + i * 2, &r, 2);
  }
}

}  // namespace

uint64_t WidenToF64(DType from, uint64_t pattern) {
  if (from == DType::kF64) return pattern;
  const FloatLayout l = FloatLayoutOf(from);
  const unsigned m_bits = l.exponent_shift;
  const uint64_t sign = (pattern >> (l.width_bits - 1)) << 63;
  const uint64_t exponent = (pattern >> m_bits) & l.exponent_mask;
  const uint64_t mantissa = pattern & ((uint64_t{1} << m_bits) - 1);
  const bool e4m3 = from == DType::kF8E4M3;
  if (e4m3 ? (exponent == 15 && mantissa == 7) : exponent == l.exponent_mask) {
    const bool nan = e4m3 || mantissa != 0;
    return sign | kF64Infinity | (nan ? (mantissa << (kF64Mantissa - m_bits)) | (uint64_t{1} << 51) : 0);
  }
  if (exponent == 0) {
    if (mantissa == 0) return sign;
    const unsigned top = 63 - static_cast<unsigned>(std::countl_zero(mantissa));  // denormal: value = 1.x * 2^(top)
    const uint64_t e = static_cast<uint64_t>(kF64Bias + 1 - Bias(l) - static_cast<int>(m_bits) + static_cast<int>(top));
    return sign | (e << kF64Mantissa) | ((mantissa << (kF64Mantissa - top)) & ((uint64_t{1} << kF64Mantissa) - 1));
  }
  const uint64_t e = exponent + static_cast<uint64_t>(kF64Bias - Bias(l));
  return sign | (e << kF64Mantissa) | (mantissa << (kF64Mantissa - m_bits));
}

uint64_t NarrowFromF64(DType to, uint64_t f64_pattern) {
  if (to == DType::kF64) return f64_pattern;
  const FloatLayout l = FloatLayoutOf(to);
  const unsigned m_bits = l.exponent_shift;
  const bool e4m3 = to == DType::kF8E4M3;
  const uint64_t sign = (f64_pattern >> 63) << (l.width_bits - 1);
  const uint64_t magnitude = f64_pattern & ~(uint64_t{1} << 63);
  const uint64_t infinity = e4m3 ? 0x7e : uint64_t{l.exponent_mask} << m_bits;  // E4M3: the largest finite value, 448
  if (magnitude > kF64Infinity) return sign | (e4m3 ? 0x7f : infinity | (uint64_t{1} << (m_bits - 1)));
  if (magnitude == kF64Infinity) return sign | infinity;
  const int exponent = static_cast<int>(magnitude >> kF64Mantissa) - kF64Bias;
  const uint64_t significand = (magnitude & ((uint64_t{1} << kF64Mantissa) - 1)) | (uint64_t{1} << kF64Mantissa);
  if ((magnitude >> kF64Mantissa) == 0) return sign;  // F64 denormals round to zero in every narrower type
  // Bits to drop so that the result's mantissa has m_bits; more when the result is denormal.
  int drop = static_cast<int>(kF64Mantissa - m_bits);
  int biased = exponent + Bias(l);
  if (biased < 1) {
    drop += 1 - biased;
    biased = 1;
  }
  if (drop > 63) return sign;
  const uint64_t kept = significand >> drop;
  const uint64_t lost = significand & ((uint64_t{1} << drop) - 1);
  const uint64_t half = uint64_t{1} << (drop - 1);
  const uint64_t rounded = kept + (lost > half || (lost == half && (kept & 1)) ? 1 : 0);
  // A carry out of the mantissa moves into the exponent by itself; a denormal that rounds up becomes normal likewise.
  const uint64_t result = (static_cast<uint64_t>(biased - 1) << m_bits) + rounded;
  return sign | (result >= infinity ? infinity : result);
}

void ConvertFloats(DType from, DType to, const std::byte* in, std::byte* out, size_t n) {
  if (from == to) {
    if (n != 0) std::memcpy(out, in, n * DTypeBytes(from));
    return;
  }
  if (from == DType::kBF16 && to == DType::kF32) return Bf16ToF32(in, out, n);
  if (from == DType::kF32 && to == DType::kBF16) return F32ToBf16(in, out, n);
  switch (DTypeBytes(from)) {
    case 1:
      return ConvertFrom<uint8_t>(from, to, in, out, n);
    case 2:
      return ConvertFrom<uint16_t>(from, to, in, out, n);
    case 4:
      return ConvertFrom<uint32_t>(from, to, in, out, n);
    default:
      return ConvertFrom<uint64_t>(from, to, in, out, n);
  }
}

}  // namespace modelstore
