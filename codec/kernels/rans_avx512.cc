// AVX-512 (F, BW, VL, DQ): symbols are found by comparisons in registers, so neither gathers nor slot tables are
// needed. A group's 32 states are two vectors of 16; 16-bit work (contexts, thresholds, values) is done for all 32 at
// once in element order, which is why lane l holds element 2(l mod 16) + (l div 16).
#include <immintrin.h>

#include <array>
#include <cstring>

#include "codec/kernels/rans_fast.h"

namespace modelstore {
namespace {

// A constant that the compiler cannot see through: GCC 12 would otherwise rebuild each from a general register in every
// group, which costs a fifth of the speed.
inline __m512i Opaque(__m512i v) {
  __asm__("" : "+v"(v));
  return v;
}

struct Constants {
  __m512i low_halves = Opaque(_mm512_set1_epi32(0xffff));
  __m512i state_low = Opaque(_mm512_set1_epi32(static_cast<int>(kStateLow)));
  __m512i slot_mask = Opaque(_mm512_set1_epi16(kProbScale - 1));
  __m512i prob_scale = Opaque(_mm512_set1_epi16(kProbScale));
  __m512i first_max = Opaque(_mm512_set1_epi16(kFirstRawBits));
  __m512i one = Opaque(_mm512_set1_epi16(1));
  __m512i sign = Opaque(_mm512_set1_epi16(static_cast<short>(0x8000)));
};

// A job in registers: nothing here is reached through memory that the output could alias.
struct Stream {
  __m512i even, odd;  // states of even and odd elements
  const std::byte* next;
  const std::byte* prediction;
  const uint8_t* classes;
  std::byte* out;
  size_t done;
};

// Every statement below is written for N streams at once, so that their instructions alternate: the core's scheduler
// holds fewer instructions than one group has, and would otherwise fill up with one chain waiting for itself.
template <unsigned N>
using Vectors = __m512i[N];
#define MS_EACH for (unsigned i = 0; i < N; ++i)

inline __m512i EvenOf(const Constants& k, __m512i v) { return _mm512_and_si512(v, k.low_halves); }
inline __m512i OddOf(__m512i v) { return _mm512_srli_epi32(v, 16); }

// The states' low halves in element order: low_halves ? even : odd << 16.
inline __m512i LowHalves(const Constants& k, const Stream& s) {
  return _mm512_ternarylogic_epi32(k.low_halves, s.even, _mm512_slli_epi32(s.odd, 16), 0xca);
}

// Lanes whose state fell below the lower bound take the next words, in lane order.
template <unsigned N>
__attribute__((always_inline)) inline void Refill(const Constants& k, Stream* s) {
  __mmask16 even[N], odd[N];
  Vectors<N> words;
  MS_EACH even[i] = _mm512_cmplt_epu32_mask(s[i].even, k.state_low);
  MS_EACH odd[i] = _mm512_cmplt_epu32_mask(s[i].odd, k.state_low);
  const auto load = [](const Stream& t) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.next)));
  };
  MS_EACH words[i] = load(s[i]);
  MS_EACH s[i].next += 2 * static_cast<unsigned>(_mm_popcnt_u32(even[i]));
  MS_EACH words[i] = _mm512_maskz_expand_epi32(even[i], words[i]);
  MS_EACH s[i].even = _mm512_mask_or_epi32(s[i].even, even[i], _mm512_slli_epi32(s[i].even, 16), words[i]);
  MS_EACH words[i] = load(s[i]);
  MS_EACH s[i].next += 2 * static_cast<unsigned>(_mm_popcnt_u32(odd[i]));
  MS_EACH words[i] = _mm512_maskz_expand_epi32(odd[i], words[i]);
  MS_EACH s[i].odd = _mm512_mask_or_epi32(s[i].odd, odd[i], _mm512_slli_epi32(s[i].odd, 16), words[i]);
}

// x = freq * (x >> P) + slot - start, then the first raw bits, then the long values' second phase. values: the coded
// values.
template <unsigned N>
__attribute__((always_inline)) inline void Advance(const Constants& k, Stream* s, const __m512i* slot,
                                                   const __m512i* start, const __m512i* end, const __m512i* base,
                                                   const __m512i* raw, __m512i* value) {
  Vectors<N> freq, offset, first, mask;
  MS_EACH freq[i] = _mm512_sub_epi16(end[i], start[i]);
  MS_EACH offset[i] = _mm512_sub_epi16(slot[i], start[i]);
  MS_EACH s[i].even = _mm512_mullo_epi32(EvenOf(k, freq[i]), _mm512_srli_epi32(s[i].even, kProbBits));
  MS_EACH s[i].odd = _mm512_mullo_epi32(OddOf(freq[i]), _mm512_srli_epi32(s[i].odd, kProbBits));
  MS_EACH first[i] = _mm512_min_epu16(raw[i], k.first_max);
  MS_EACH s[i].even = _mm512_add_epi32(s[i].even, EvenOf(k, offset[i]));
  MS_EACH s[i].odd = _mm512_add_epi32(s[i].odd, OddOf(offset[i]));
  MS_EACH mask[i] = _mm512_sub_epi16(_mm512_sllv_epi16(k.one, first[i]), k.one);
  MS_EACH value[i] = _mm512_add_epi16(base[i], _mm512_and_si512(LowHalves(k, s[i]), mask[i]));
  MS_EACH s[i].even = _mm512_srlv_epi32(s[i].even, EvenOf(k, first[i]));
  MS_EACH s[i].odd = _mm512_srlv_epi32(s[i].odd, OddOf(first[i]));
  Refill<N>(k, s);
  MS_EACH {
    if (__builtin_expect(_mm512_cmpgt_epu16_mask(raw[i], k.first_max) == 0, 1)) continue;
    const __m512i rest = _mm512_subs_epu16(raw[i], k.first_max);
    const __m512i rest_mask = _mm512_sub_epi16(_mm512_sllv_epi16(k.one, rest), k.one);
    value[i] =
        _mm512_add_epi16(value[i], _mm512_slli_epi16(_mm512_and_si512(LowHalves(k, s[i]), rest_mask), kFirstRawBits));
    s[i].even = _mm512_srlv_epi32(s[i].even, EvenOf(k, rest));
    s[i].odd = _mm512_srlv_epi32(s[i].odd, OddOf(rest));
    Refill<1>(k, &s[i]);
  }
}

inline Stream Load(const DecodeJob& job) {
  return {_mm512_loadu_si512(job.state),
          _mm512_loadu_si512(job.state + 16),
          job.next,
          job.prediction,
          job.classes,
          job.out,
          job.done};
}

inline void Store(const Stream& s, DecodeJob& job) {
  _mm512_storeu_si512(job.state, s.even);
  _mm512_storeu_si512(job.state + 16, s.odd);
  job.next = s.next;
  job.done = s.done;
}

// Runs `step` on N jobs together while all have a group left and input enough for it.
template <unsigned N, typename Step>
__attribute__((always_inline)) inline void Run(const Step& step, DecodeJob* jobs) {
  const std::byte* end[N];
  size_t elems[N];
  Stream s[N];
  MS_EACH end[i] = jobs[i].end;
  MS_EACH elems[i] = jobs[i].elems;
  MS_EACH s[i] = Load(jobs[i]);
  const auto has_group = [&] {
    bool all = true;
    MS_EACH all &= elems[i] - s[i].done >= kLanes && end[i] - s[i].next >= static_cast<ptrdiff_t>(kFastPathSlackBytes);
    return all;
  };
  while (has_group()) step.template operator()<N>(s);
  MS_EACH Store(s[i], jobs[i]);
}

template <typename Step>
inline void RunAll(const Step step, DecodeJob* jobs, unsigned job_count) {
  if (job_count == 2) Run<2>(step, jobs);
  for (unsigned j = 0; j < job_count; ++j) Run<1>(step, jobs + j);
}

inline __m512i Table(const uint16_t* at) { return _mm512_loadu_si512(at); }

// The eight symbols of 16 contexts: threshold trees of three levels, then 128 symbols, all indexed by context in the
// low bits and the path of comparisons above.
struct DeltaStep {
  Constants k;
  __m512i last_context = Opaque(_mm512_set1_epi16(kDeltaContexts - 1));
  __m512i path1 = Opaque(_mm512_set1_epi16(16));
  __m512i path2 = Opaque(_mm512_set1_epi16(32));
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

  template <unsigned N>
  __attribute__((always_inline)) inline void operator()(Stream* s) const {
    Vectors<N> prediction, path, slot, threshold, start, end, b, r, value;
    __mmask32 above[N];
    MS_EACH prediction[i] = _mm512_loadu_si512(s[i].prediction + s[i].done * 2);
    MS_EACH path[i] = _mm512_and_si512(_mm512_srl_epi16(prediction[i], exponent_shift), exponent_mask);
    MS_EACH path[i] = _mm512_min_epu16(_mm512_subs_epu16(path[i], exponent_low), last_context);
    MS_EACH slot[i] = _mm512_and_si512(LowHalves(k, s[i]), k.slot_mask);

    MS_EACH threshold[i] = _mm512_permutexvar_epi16(path[i], level1);
    MS_EACH above[i] = _mm512_cmpge_epu16_mask(slot[i], threshold[i]);
    MS_EACH start[i] = _mm512_maskz_mov_epi16(above[i], threshold[i]);
    MS_EACH end[i] = _mm512_mask_mov_epi16(threshold[i], above[i], k.prob_scale);
    MS_EACH path[i] = _mm512_mask_add_epi16(path[i], above[i], path[i], path1);

    MS_EACH threshold[i] = _mm512_permutexvar_epi16(path[i], level2);
    MS_EACH above[i] = _mm512_cmpge_epu16_mask(slot[i], threshold[i]);
    MS_EACH start[i] = _mm512_mask_mov_epi16(start[i], above[i], threshold[i]);
    MS_EACH end[i] = _mm512_mask_mov_epi16(threshold[i], above[i], end[i]);
    MS_EACH path[i] = _mm512_mask_add_epi16(path[i], above[i], path[i], path2);

    MS_EACH threshold[i] = _mm512_permutex2var_epi16(level3_low, path[i], level3_high);
    MS_EACH b[i] = _mm512_permutex2var_epi16(base[0], path[i], base[1]);
    MS_EACH r[i] = _mm512_permutex2var_epi16(raw[0], path[i], raw[1]);
    MS_EACH above[i] = _mm512_cmpge_epu16_mask(slot[i], threshold[i]);
    MS_EACH start[i] = _mm512_mask_mov_epi16(start[i], above[i], threshold[i]);
    MS_EACH end[i] = _mm512_mask_mov_epi16(threshold[i], above[i], end[i]);
    MS_EACH b[i] = _mm512_mask_mov_epi16(b[i], above[i], _mm512_permutex2var_epi16(base[2], path[i], base[3]));
    MS_EACH r[i] = _mm512_mask_mov_epi16(r[i], above[i], _mm512_permutex2var_epi16(raw[2], path[i], raw[3]));
    Advance<N>(k, s, slot, start, end, b, r, value);

    // FromDeltaValue, 32 at once.
    MS_EACH {
      const __m512i ordered =
          _mm512_xor_si512(prediction[i], _mm512_or_si512(_mm512_srai_epi16(prediction[i], 15), k.sign));
      const __m512i negative = _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_and_si512(value[i], k.one));
      const __m512i sum = _mm512_add_epi16(ordered, _mm512_xor_si512(_mm512_srli_epi16(value[i], 1), negative));
      // sum ^ (~(sum >> 15) | sign)
      _mm512_storeu_si512(s[i].out + s[i].done * 2,
                          _mm512_ternarylogic_epi32(sum, _mm512_srai_epi16(sum, 15), k.sign, 0x4b));
      s[i].done += kLanes;
    }
  }
};

// The 64 symbols of a class as a threshold tree in heap order: node 1 is the root, node n's children 2n and 2n + 1.
// Levels one to five share one register (nodes 1 to 31), level six has the other (nodes 32 to 63).
struct SelfStep {
  struct Class {
    std::array<uint16_t, 64> heap, base, raw;
  };
  Constants k;
  __m512i inner_bits;  // of a value with low_bit: those that stay where they are
  __m128i low_shift;
  std::array<Class, kSelfClasses> classes;

  explicit SelfStep(const DecodeTables& t)
      : inner_bits(_mm512_set1_epi16(t.low_bit ? 0x7ffe : 0)), low_shift(_mm_cvtsi32_si128(t.low_bit ? 15 : 1)) {
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

  template <unsigned N>
  __attribute__((always_inline)) inline void operator()(Stream* s) const {
    const Class* c[N];
    Vectors<N> slot, upper, lower, threshold, start, end, node, b, r, value;
    __mmask32 above[N];
    MS_EACH c[i] = &classes[s[i].classes[s[i].done / kSelfChunkElems]];
    MS_EACH slot[i] = _mm512_and_si512(LowHalves(k, s[i]), k.slot_mask);
    MS_EACH upper[i] = Table(c[i]->heap.data());
    MS_EACH lower[i] = Table(c[i]->heap.data() + 32);
    MS_EACH start[i] = _mm512_setzero_si512();
    MS_EACH end[i] = k.prob_scale;
    MS_EACH node[i] = k.one;
    for (unsigned level = 0; level < 6; ++level) {
      MS_EACH threshold[i] = _mm512_permutexvar_epi16(node[i], level < 5 ? upper[i] : lower[i]);
      MS_EACH above[i] = _mm512_cmpge_epu16_mask(slot[i], threshold[i]);
      MS_EACH start[i] = _mm512_mask_mov_epi16(start[i], above[i], threshold[i]);
      MS_EACH end[i] = _mm512_mask_mov_epi16(threshold[i], above[i], end[i]);
      MS_EACH node[i] = _mm512_add_epi16(node[i], node[i]);
      MS_EACH node[i] = _mm512_mask_add_epi16(node[i], above[i], node[i], k.one);
    }
    MS_EACH b[i] = _mm512_permutex2var_epi16(Table(c[i]->base.data()), node[i], Table(c[i]->base.data() + 32));
    MS_EACH r[i] = _mm512_permutex2var_epi16(Table(c[i]->raw.data()), node[i], Table(c[i]->raw.data() + 32));
    Advance<N>(k, s, slot, start, end, b, r, value);

    MS_EACH {
      // FromSelfValue: the sign goes to the top; with low_bit the top bit becomes the lowest, else everything moves
      // down.
      const __m512i rotated = _mm512_or_si512(_mm512_srl_epi16(value[i], low_shift), _mm512_slli_epi16(value[i], 15));
      _mm512_storeu_si512(s[i].out + s[i].done * 2, _mm512_or_si512(rotated, _mm512_and_si512(value[i], inner_bits)));
      s[i].done += kLanes;
    }
  }
};

void Decode(const DecodeTables& t, const uint64_t* /*slots*/, DecodeJob* jobs, unsigned job_count) {
  if (t.delta) {
    RunAll(DeltaStep(t), jobs, job_count);
  } else {
    RunAll(SelfStep(t), jobs, job_count);
  }
}

#undef MS_EACH

}  // namespace

const RansFastPath kRansAvx512 = {Decode, false};

}  // namespace modelstore
