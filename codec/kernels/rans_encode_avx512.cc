// AVX-512 (F, BW, VL, DQ) encoding: symbols are found by comparisons in registers as in decoding, by value instead of
// by slot; states are divided in float32 and corrected by the remainder, which makes the quotient exact.
#include <immintrin.h>

#include <array>

#include "codec/kernels/rans_encode_fast.h"

namespace modelstore {
namespace {

// Quantities of 32 elements as two vectors of 32-bit lanes.
struct Halves {
  __m512i even, odd;
};

inline Halves Split(__m512i v) { return {_mm512_and_si512(v, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(v, 16)}; }

// What the search yields for 32 elements.
struct Found {
  __m512i base, start, freq_raw;  // freq | raw bits << 11
};
constexpr unsigned kRawShift = 11;
constexpr uint16_t kNeverAbove = 0xffff;  // no 16-bit value exceeds it

inline __m512i Table(const uint16_t* at) { return _mm512_loadu_si512(at); }

uint16_t FreqRaw(const DecodeTables& t, size_t row, unsigned s) {
  const uint32_t end = s + 1 < t.symbols ? t.start[row + s + 1] : kProbScale;
  const uint32_t begin = t.start[row + s];
  return static_cast<uint16_t>((end - begin) | uint32_t{t.raw_bits[row + s]} << kRawShift);
}

// A value is in symbol s or a later one when it exceeds base_s - 1; symbols that do not exist are never reached.
uint16_t Threshold(const DecodeTables& t, size_t row, unsigned s) {
  return s != 0 && t.base[row + s] == 0 ? kNeverAbove : static_cast<uint16_t>(t.base[row + s] - 1);
}

struct DeltaSearch {
  __m512i level1, level2, level3[2], start[4], freq_raw[4];

  explicit DeltaSearch(const DecodeTables& t) {
    std::array<uint16_t, 32> l1{}, l2{};
    std::array<uint16_t, 64> l3{};
    std::array<uint16_t, 128> st{}, fr{};
    for (unsigned c = 0; c < kDeltaContexts; ++c) {
      const size_t row = size_t{c} * kDeltaSymbols;
      l1[c] = l1[c + 16] = Threshold(t, row, 4);
      for (unsigned path = 0; path < 2; ++path) l2[c + 16 * path] = Threshold(t, row, 4 * path + 2);
      for (unsigned path = 0; path < 4; ++path)
        l3[c + 16 * path] = Threshold(t, row, 4 * (path & 1) + 2 * (path >> 1) + 1);
      for (unsigned path = 0; path < 8; ++path) {
        const unsigned s = 4 * (path & 1) + 2 * (path >> 1 & 1) + (path >> 2);
        st[c + 16 * path] = t.start[row + s];
        fr[c + 16 * path] = FreqRaw(t, row, s);
      }
    }
    level1 = Table(l1.data());
    level2 = Table(l2.data());
    for (unsigned i = 0; i < 2; ++i) level3[i] = Table(l3.data() + 32 * i);
    for (unsigned i = 0; i < 4; ++i) {
      start[i] = Table(st.data() + 32 * i);
      freq_raw[i] = Table(fr.data() + 32 * i);
    }
  }

  inline Found operator()(__m512i value, const uint8_t* contexts) const {
    const __m512i one = _mm512_set1_epi16(1);
    __m512i path = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(contexts)));
    __m512i base = _mm512_setzero_si512();
    __m512i threshold = _mm512_permutexvar_epi16(path, level1);
    __mmask32 above = _mm512_cmpgt_epu16_mask(value, threshold);
    base = _mm512_mask_add_epi16(base, above, threshold, one);
    path = _mm512_mask_add_epi16(path, above, path, _mm512_set1_epi16(16));
    threshold = _mm512_permutexvar_epi16(path, level2);
    above = _mm512_cmpgt_epu16_mask(value, threshold);
    base = _mm512_mask_add_epi16(base, above, threshold, one);
    path = _mm512_mask_add_epi16(path, above, path, _mm512_set1_epi16(32));
    threshold = _mm512_permutex2var_epi16(level3[0], path, level3[1]);
    above = _mm512_cmpgt_epu16_mask(value, threshold);
    base = _mm512_mask_add_epi16(base, above, threshold, one);
    const auto pick = [&](const __m512i* table) {
      return _mm512_mask_mov_epi16(_mm512_permutex2var_epi16(table[0], path, table[1]), above,
                                   _mm512_permutex2var_epi16(table[2], path, table[3]));
    };
    return {base, pick(start), pick(freq_raw)};
  }
};

struct SelfSearch {
  struct Class {
    std::array<uint16_t, 64> heap, start, freq_raw;
  };
  std::array<Class, kSelfClasses> classes;

  explicit SelfSearch(const DecodeTables& t) {
    for (unsigned c = 0; c < kSelfClasses; ++c) {
      const size_t row = size_t{c} * kSelfSymbols;
      classes[c].heap[0] = 0;
      for (unsigned node = 1; node < 64; ++node) {
        const unsigned level = 31 - static_cast<unsigned>(__builtin_clz(node));
        const unsigned span = 64u >> level;
        classes[c].heap[node] = Threshold(t, row, (node - (1u << level)) * span + span / 2);
      }
      for (unsigned s = 0; s < 64; ++s) {
        classes[c].start[s] = t.start[row + s];
        classes[c].freq_raw[s] = FreqRaw(t, row, s);
      }
    }
  }

  inline Found operator()(__m512i value, const uint8_t* contexts) const {
    const Class& c = classes[contexts[0]];  // a group never crosses a chunk
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i upper = Table(c.heap.data());
    const __m512i lower = Table(c.heap.data() + 32);
    __m512i base = _mm512_setzero_si512();
    __m512i node = one;
    for (unsigned level = 0; level < 6; ++level) {
      const __m512i threshold = _mm512_permutexvar_epi16(node, level < 5 ? upper : lower);
      const __mmask32 above = _mm512_cmpgt_epu16_mask(value, threshold);
      base = _mm512_mask_add_epi16(base, above, threshold, one);
      node = _mm512_add_epi16(node, node);
      node = _mm512_mask_add_epi16(node, above, node, one);
    }
    return {base, _mm512_permutex2var_epi16(Table(c.start.data()), node, Table(c.start.data() + 32)),
            _mm512_permutex2var_epi16(Table(c.freq_raw.data()), node, Table(c.freq_raw.data() + 32))};
  }
};

// Writes the low words of the chosen lanes, in lane order, below *next; those lanes lose them.
inline __m512i Emit(__m512i x, __mmask16 lanes, std::byte*& next) {
  const unsigned count = static_cast<unsigned>(_mm_popcnt_u32(lanes));
  next -= 2 * count;
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(lanes, x));
  _mm256_mask_storeu_epi16(next, static_cast<__mmask16>((1u << count) - 1), words);
  return _mm512_mask_srli_epi32(x, lanes, x, 16);
}

// (y / freq) << P | start + y % freq
inline __m512i Push(__m512i y, __m512i freq, __m512i start) {
  __m512i q = _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(y), _mm512_cvtepi32_ps(freq)));
  // The float quotient is below 2^22 and off by less than one: the remainder says which way.
  __m512i r = _mm512_sub_epi32(y, _mm512_mullo_epi32(q, freq));
  const __mmask16 high = _mm512_cmplt_epi32_mask(r, _mm512_setzero_si512());
  q = _mm512_mask_sub_epi32(q, high, q, _mm512_set1_epi32(1));
  r = _mm512_mask_add_epi32(r, high, r, freq);
  const __mmask16 low = _mm512_cmpge_epi32_mask(r, freq);
  q = _mm512_mask_add_epi32(q, low, q, _mm512_set1_epi32(1));
  r = _mm512_mask_sub_epi32(r, low, r, freq);
  return _mm512_add_epi32(_mm512_slli_epi32(q, kProbBits), _mm512_add_epi32(start, r));
}

template <typename Search>
void EncodeGroups(const Search search, EncodeJob& job) {
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i first_max = _mm512_set1_epi16(kFirstRawBits);
  __m512i even = _mm512_loadu_si512(job.state);
  __m512i odd = _mm512_loadu_si512(job.state + 16);
  std::byte* next = job.next;
  while (job.groups > 0 && next - job.floor >= static_cast<ptrdiff_t>(kEncodeGroupBytes)) {
    const size_t at = (job.groups - 1) * kLanes;
    const __m512i value = _mm512_loadu_si512(job.values + at);
    const Found found = search(value, job.contexts + at);
    const __m512i freq = _mm512_and_si512(found.freq_raw, _mm512_set1_epi16((1 << kRawShift) - 1));
    const __m512i raw_bits = _mm512_srli_epi16(found.freq_raw, kRawShift);
    const __m512i raw = _mm512_sub_epi16(value, found.base);
    if (_mm512_testn_epi16_mask(freq, freq) != 0 ||
        _mm512_test_epi16_mask(_mm512_srlv_epi16(raw, raw_bits), _mm512_set1_epi16(-1)) != 0) {
      job.uncodable = true;
      break;
    }
    if (_mm512_cmpgt_epu16_mask(raw_bits, first_max) != 0) {
      const Halves rest = Split(_mm512_subs_epu16(raw_bits, first_max));
      const Halves upper = Split(_mm512_srli_epi16(raw, kFirstRawBits));
      const __m512i width = _mm512_set1_epi32(32);
      const auto full = [&](__m512i x, __m512i bits) {
        const __m512i top = _mm512_srlv_epi32(x, _mm512_sub_epi32(width, bits));  // no bits: shifted out, 0
        return _mm512_test_epi32_mask(top, top);
      };
      const __mmask16 odd_full = full(odd, rest.odd);
      const __mmask16 even_full = full(even, rest.even);
      odd = Emit(odd, odd_full, next);
      even = Emit(even, even_full, next);
      odd = _mm512_or_si512(_mm512_sllv_epi32(odd, rest.odd), upper.odd);
      even = _mm512_or_si512(_mm512_sllv_epi32(even, rest.even), upper.even);
    }
    const __m512i first16 = _mm512_min_epu16(raw_bits, first_max);
    const Halves first = Split(first16);
    const Halves low_raw = Split(_mm512_and_si512(raw, _mm512_sub_epi16(_mm512_sllv_epi16(one, first16), one)));
    const Halves f = Split(freq);
    const Halves start = Split(found.start);
    const auto limit = [](__m512i fr, __m512i bits) {
      const __m512i shift = _mm512_sub_epi32(_mm512_set1_epi32(32 - kProbBits), bits);
      return _mm512_sub_epi32(_mm512_sllv_epi32(fr, shift), _mm512_set1_epi32(1));  // 2^32 wraps to the largest
    };
    odd = Emit(odd, _mm512_cmpgt_epu32_mask(odd, limit(f.odd, first.odd)), next);
    even = Emit(even, _mm512_cmpgt_epu32_mask(even, limit(f.even, first.even)), next);
    odd = Push(_mm512_or_si512(_mm512_sllv_epi32(odd, first.odd), low_raw.odd), f.odd, start.odd);
    even = Push(_mm512_or_si512(_mm512_sllv_epi32(even, first.even), low_raw.even), f.even, start.even);
    --job.groups;
  }
  _mm512_storeu_si512(job.state, even);
  _mm512_storeu_si512(job.state + 16, odd);
  job.next = next;
}

}  // namespace

void EncodeGroupsAvx512(const DecodeTables& tables, EncodeJob& job) {
  if (tables.delta) {
    EncodeGroups(DeltaSearch(tables), job);
  } else {
    EncodeGroups(SelfSearch(tables), job);
  }
}

}  // namespace modelstore
