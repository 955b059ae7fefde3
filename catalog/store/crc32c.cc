#include "catalog/store/crc32c.h"

#include <array>
#include <cstring>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace modelstore {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli, reflected

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: what byte b contributes from k bytes further on.
constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (uint32_t b = 0; b < 256; ++b) tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xff];
  return tables;
}
constexpr Tables kTables = MakeTables();

uint64_t Load64(const char* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

#if defined(__x86_64__)

// The instruction takes 3 cycles and three are in flight at once, so three stretches of kStretch bytes go side by side;
// their sums are joined by shifting one over the zeros that stand for the next.
constexpr size_t kStretch = 4096;

using ShiftTables = std::array<std::array<uint32_t, 256>, 4>;

// A sum is linear in its bits: what each byte of it becomes after kStretch zero bytes.
const ShiftTables& StretchShift() {
  static const ShiftTables tables = [] {
    ShiftTables out{};
    for (size_t byte = 0; byte < 4; ++byte) {
      for (uint32_t bit = 1; bit < 256; bit <<= 1) {
        uint32_t crc = bit << (8 * byte);
        for (size_t i = 0; i < kStretch; ++i) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
        for (uint32_t b = bit; b < 2 * bit; ++b) out[byte][b] = out[byte][b - bit] ^ crc;
      }
    }
    return out;
  }();
  return tables;
}

uint32_t Shift(const ShiftTables& t, uint32_t crc) {
  return t[0][crc & 0xff] ^ t[1][crc >> 8 & 0xff] ^ t[2][crc >> 16 & 0xff] ^ t[3][crc >> 24];
}

__attribute__((target("sse4.2"))) uint32_t ExtendByInstruction(uint32_t crc, const char* data, size_t size) {
  uint64_t a = crc ^ 0xffffffff;
  if (size >= 3 * kStretch) {
    const ShiftTables& shift = StretchShift();
    for (; size >= 3 * kStretch; size -= 3 * kStretch, data += 3 * kStretch) {
      uint64_t b = 0;
      uint64_t c = 0;
      for (size_t i = 0; i < kStretch; i += 8) {
        a = _mm_crc32_u64(a, Load64(data + i));
        b = _mm_crc32_u64(b, Load64(data + kStretch + i));
        c = _mm_crc32_u64(c, Load64(data + 2 * kStretch + i));
      }
      a = Shift(shift, static_cast<uint32_t>(a)) ^ b;
      a = Shift(shift, static_cast<uint32_t>(a)) ^ c;
    }
  }
  for (; size >= 8; size -= 8, data += 8) a = _mm_crc32_u64(a, Load64(data));
  auto sum = static_cast<uint32_t>(a);
  for (; size > 0; --size, ++data) sum = _mm_crc32_u8(sum, static_cast<uint8_t>(*data));
  return sum ^ 0xffffffff;
}

#endif

}  // namespace

uint32_t ExtendCrc32cByTables(uint32_t crc, const char* data, size_t size) {
  uint32_t sum = crc ^ 0xffffffff;
  for (; size >= 8; size -= 8, data += 8) {
    const uint64_t word = Load64(data) ^ sum;
    sum = 0;
    for (size_t k = 0; k < 8; ++k) sum ^= kTables[7 - k][word >> (8 * k) & 0xff];
  }
  for (; size > 0; --size, ++data) sum = (sum >> 8) ^ kTables[0][(sum ^ static_cast<uint8_t>(*data)) & 0xff];
  return sum ^ 0xffffffff;
}

uint32_t ExtendCrc32c(uint32_t crc, const char* data, size_t size) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return ExtendByInstruction(crc, data, size);
#endif
  return ExtendCrc32cByTables(crc, data, size);
}

}  // namespace modelstore
