// AVX-512 (F, BW, VL, DQ): symbols are found by comparisons in registers, so neither gathers nor slot tables are
// needed. A group's 32 states are two vectors of 16; 16-bit work (contexts, thresholds, values) is done for all 32 at
// once in element order, which is why lane l holds element 2(l mod 16) + (l div 16). Measured on Zen 4: see
// docs/format.md, "Speed".
#include <immintrin.h>

#include <array>
#include <cstring>

#include "codec/kernels/rans_fast.h"

namespace modelstore {
namespace {

constexpr __mmask32 kOddElements = 0xaaaaaaaa;

// A job in registers: nothing here is reached through memory that the output could alias.
struct Stream {
  __m512i even, odd;  // states of even and odd elements
  const std::byte* next;
  const std::byte* prediction;
  std::byte* out;
  size_t done;
};

inline __m512i LowHalves(const Stream& s) {
  return _mm512_mask_blend_epi16(kOddElements, s.even, _mm512_slli_epi32(s.odd, 16));
}

inline __m512i EvenOf(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi32(0xffff)); }
inline __m512i OddOf(__m512i v) { return _mm512_srli_epi32(v, 16); }

// Lanes whose state fell below the lower bound take the next words, in lane order.
inline __m512i Refill(__m512i x, const std::byte*& next) {
  const __mmask16 need = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(static_cast<int>(kStateLow)));
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(next)));
  next += 2 * static_cast<unsigned>(_mm_popcnt_u32(need));
  return _mm512_mask_or_epi32(x, need, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(need, words));
}

// x = freq * (x >> P) + slot - start, then the first raw bits, then the long values' second phase. Returns the coded
// values.
inline __m512i Advance(Stream& s, __m512i slot, __m512i start, __m512i end, __m512i base, __m512i raw) {
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i first_max = _mm512_set1_epi16(kFirstRawBits);
  const __m512i freq = _mm512_sub_epi16(end, start);
  const __m512i offset = _mm512_sub_epi16(slot, start);
  s.even = _mm512_add_epi32(_mm512_mullo_epi32(EvenOf(freq), _mm512_srli_epi32(s.even, kProbBits)), EvenOf(offset));
  s.odd = _mm512_add_epi32(_mm512_mullo_epi32(OddOf(freq), _mm512_srli_epi32(s.odd, kProbBits)), OddOf(offset));

  const __m512i first = _mm512_min_epu16(raw, first_max);
  const __m512i first_mask = _mm512_sub_epi16(_mm512_sllv_epi16(one, first), one);
  __m512i value = _mm512_add_epi16(base, _mm512_and_si512(LowHalves(s), first_mask));
  s.even = _mm512_srlv_epi32(s.even, EvenOf(first));
  s.odd = _mm512_srlv_epi32(s.odd, OddOf(first));
  s.even = Refill(s.even, s.next);
  s.odd = Refill(s.odd, s.next);

  if (_mm512_cmpgt_epu16_mask(raw, first_max) != 0) {
    const __m512i rest = _mm512_subs_epu16(raw, first_max);
    const __m512i rest_mask = _mm512_sub_epi16(_mm512_sllv_epi16(one, rest), one);
    value = _mm512_add_epi16(value, _mm512_slli_epi16(_mm512_and_si512(LowHalves(s), rest_mask), kFirstRawBits));
    s.even = _mm512_srlv_epi32(s.even, EvenOf(rest));
    s.odd = _mm512_srlv_epi32(s.odd, OddOf(rest));
    s.even = Refill(s.even, s.next);
    s.odd = Refill(s.odd, s.next);
  }
  return value;
}

inline Stream Load(const DecodeJob& job) {
  return {_mm512_loadu_si512(job.state), _mm512_loadu_si512(job.state + 16), job.next, job.prediction, job.out, job.done};
}

inline void Store(const Stream& s, DecodeJob& job) {
  _mm512_storeu_si512(job.state, s.even);
  _mm512_storeu_si512(job.state + 16, s.odd);
  job.next = s.next;
  job.done = s.done;
}

// Runs `step` on both jobs in turn while both can, then on what is left.
template <typename Step>
inline void Run(const Step step, DecodeJob* jobs, unsigned job_count) {
  struct Limits {
    const std::byte* end;
    size_t elems;
    const uint8_t* classes;
    bool HasGroup(const Stream& s) const {
      return elems - s.done >= kLanes && end - s.next >= static_cast<ptrdiff_t>(kFastPathSlackBytes);
    }
  };
  const Limits la{jobs[0].end, jobs[0].elems, jobs[0].classes};
  Stream a = Load(jobs[0]);
  if (job_count > 1) {
    const Limits lb{jobs[1].end, jobs[1].elems, jobs[1].classes};
    Stream b = Load(jobs[1]);
    while (la.HasGroup(a) && lb.HasGroup(b)) {
      step(a, la.classes);
      step(b, lb.classes);
    }
    while (lb.HasGroup(b)) step(b, lb.classes);
    Store(b, jobs[1]);
  }
  while (la.HasGroup(a)) step(a, la.classes);
  Store(a, jobs[0]);
}

inline __m512i Table(const uint16_t* at) { return _mm512_loadu_si512(at); }

// The eight symbols of 16 contexts: threshold trees of three levels, then 128 symbols, all indexed by context in the
// low bits and the path of comparisons above.
struct DeltaStep {
  __m512i level1, level2, level3_low, level3_high;
  __m512i base[4], raw[4];
  __m512i exponent_low, exponent_mask;
  __m128i exponent_shift;

  explicit DeltaStep(const DecodeTables& t) {
    std::array<uint16_t, 32> l1{}, l2{};
    std::array<uint16_t, 64> l3{};
    std::array<uint16_t, 128> b{}, r{};
    for (unsigned c = 0; c < kDeltaContexts; ++c) {
      const size_t at = size_t{c} * kDeltaSymbols;
      l1[c] = l1[c + 16] = t.start[at + 4];
      for (unsigned path = 0; path < 2; ++path) l2[c + 16 * path] = t.start[at + 4 * path + 2];
      for (unsigned path = 0; path < 4; ++path) l3[c + 16 * path] = t.start[at + 4 * (path & 1) + 2 * (path >> 1) + 1];
      for (unsigned path = 0; path < 8; ++path) {
        const size_t s = at + 4 * (path & 1) + 2 * (path >> 1 & 1) + (path >> 2);
        b[c + 16 * path] = static_cast<uint16_t>(t.base[s]);
        r[c + 16 * path] = t.raw_bits[s];
      }
    }
    level1 = Table(l1.data());
    level2 = Table(l2.data());
    level3_low = Table(l3.data());
    level3_high = Table(l3.data() + 32);
    for (unsigned i = 0; i < 4; ++i) {
      base[i] = Table(b.data() + 32 * i);
      raw[i] = Table(r.data() + 32 * i);
    }
    exponent_low = _mm512_set1_epi16(static_cast<short>(t.exponent_low));
    exponent_mask = _mm512_set1_epi16(static_cast<short>(t.layout.exponent_mask));
    exponent_shift = _mm_cvtsi32_si128(static_cast<int>(t.layout.exponent_shift));
  }

  inline void operator()(Stream& s, const uint8_t* /*classes*/) const {
    const __m512i prediction = _mm512_loadu_si512(s.prediction + s.done * 2);
    const __m512i exponent = _mm512_and_si512(_mm512_srl_epi16(prediction, exponent_shift), exponent_mask);
    __m512i path = _mm512_min_epu16(_mm512_subs_epu16(exponent, exponent_low), _mm512_set1_epi16(kDeltaContexts - 1));
    const __m512i slot = _mm512_and_si512(LowHalves(s), _mm512_set1_epi16(kProbScale - 1));

    __m512i threshold = _mm512_permutexvar_epi16(path, level1);
    __mmask32 above = _mm512_cmpge_epu16_mask(slot, threshold);
    __m512i start = _mm512_maskz_mov_epi16(above, threshold);
    __m512i end = _mm512_mask_mov_epi16(threshold, above, _mm512_set1_epi16(kProbScale));
    path = _mm512_mask_add_epi16(path, above, path, _mm512_set1_epi16(16));

    threshold = _mm512_permutexvar_epi16(path, level2);
    above = _mm512_cmpge_epu16_mask(slot, threshold);
    start = _mm512_mask_mov_epi16(start, above, threshold);
    end = _mm512_mask_mov_epi16(threshold, above, end);
    path = _mm512_mask_add_epi16(path, above, path, _mm512_set1_epi16(32));

    threshold = _mm512_permutex2var_epi16(level3_low, path, level3_high);
    above = _mm512_cmpge_epu16_mask(slot, threshold);
    start = _mm512_mask_mov_epi16(start, above, threshold);
    end = _mm512_mask_mov_epi16(threshold, above, end);

    const __m512i b = _mm512_mask_mov_epi16(_mm512_permutex2var_epi16(base[0], path, base[1]), above,
                                            _mm512_permutex2var_epi16(base[2], path, base[3]));
    const __m512i r = _mm512_mask_mov_epi16(_mm512_permutex2var_epi16(raw[0], path, raw[1]), above,
                                            _mm512_permutex2var_epi16(raw[2], path, raw[3]));
    const __m512i value = Advance(s, slot, start, end, b, r);

    // FromDeltaValue, 32 at once.
    const __m512i sign = _mm512_set1_epi16(static_cast<short>(0x8000));
    const __m512i ordered = _mm512_xor_si512(prediction, _mm512_or_si512(_mm512_srai_epi16(prediction, 15), sign));
    const __m512i negative = _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_and_si512(value, _mm512_set1_epi16(1)));
    const __m512i sum = _mm512_add_epi16(ordered, _mm512_xor_si512(_mm512_srli_epi16(value, 1), negative));
    const __m512i flip = _mm512_or_si512(_mm512_andnot_si512(_mm512_srai_epi16(sum, 15), _mm512_set1_epi16(-1)), sign);
    _mm512_storeu_si512(s.out + s.done * 2, _mm512_xor_si512(sum, flip));
    s.done += kLanes;
  }
};

// The 64 symbols of a class as a threshold tree in heap order: node 1 is the root, node n's children 2n and 2n + 1.
// Levels one to five share one register (nodes 1 to 31), level six has the other (nodes 32 to 63).
struct SelfStep {
  struct Class {
    std::array<uint16_t, 64> heap, base, raw;
  };
  std::array<Class, kSelfClasses> classes;
  bool low_bit;

  explicit SelfStep(const DecodeTables& t) : low_bit(t.low_bit) {
    for (unsigned c = 0; c < kSelfClasses; ++c) {
      const size_t at = size_t{c} * kSelfSymbols;
      classes[c].heap[0] = 0;
      for (unsigned node = 1; node < 64; ++node) {
        const unsigned level = 31 - static_cast<unsigned>(__builtin_clz(node));
        const unsigned span = 64u >> level;
        classes[c].heap[node] = t.start[at + (node - (1u << level)) * span + span / 2];
      }
      for (unsigned s = 0; s < 64; ++s) {
        classes[c].base[s] = static_cast<uint16_t>(t.base[at + s]);
        classes[c].raw[s] = t.raw_bits[at + s];
      }
    }
  }

  inline void operator()(Stream& s, const uint8_t* chunk_classes) const {
    const Class& k = classes[chunk_classes[s.done / kSelfChunkElems]];
    const __m512i slot = _mm512_and_si512(LowHalves(s), _mm512_set1_epi16(kProbScale - 1));
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i upper = Table(k.heap.data());
    const __m512i lower = Table(k.heap.data() + 32);
    __m512i start = _mm512_setzero_si512();
    __m512i end = _mm512_set1_epi16(kProbScale);
    __m512i node = one;
    for (unsigned level = 0; level < 6; ++level) {
      const __m512i threshold = level == 0 ? _mm512_set1_epi16(static_cast<short>(k.heap[1]))
                                           : _mm512_permutexvar_epi16(node, level < 5 ? upper : lower);
      const __mmask32 above = _mm512_cmpge_epu16_mask(slot, threshold);
      start = _mm512_mask_mov_epi16(start, above, threshold);
      end = _mm512_mask_mov_epi16(threshold, above, end);
      node = _mm512_add_epi16(node, node);
      node = _mm512_mask_add_epi16(node, above, node, one);
    }
    const __m512i b = _mm512_permutex2var_epi16(Table(k.base.data()), node, Table(k.base.data() + 32));
    const __m512i r = _mm512_permutex2var_epi16(Table(k.raw.data()), node, Table(k.raw.data() + 32));
    const __m512i value = Advance(s, slot, start, end, b, r);

    const __m512i swapped = _mm512_or_si512(_mm512_srli_epi16(value, low_bit ? 15 : 1), _mm512_slli_epi16(value, 15));
    const __m512i pattern =
        low_bit ? _mm512_or_si512(swapped, _mm512_and_si512(value, _mm512_set1_epi16(0x7ffe))) : swapped;
    _mm512_storeu_si512(s.out + s.done * 2, pattern);
    s.done += kLanes;
  }
};

void Decode(const DecodeTables& t, const uint32_t* /*slots*/, DecodeJob* jobs, unsigned job_count) {
  if (t.delta) {
    Run(DeltaStep(t), jobs, job_count);
  } else {
    Run(SelfStep(t), jobs, job_count);
  }
}

}  // namespace

const RansFastPath kRansAvx512 = {Decode, false};

}  // namespace modelstore
