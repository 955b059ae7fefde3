// AVX2: symbols come from a slot table by gathers, eight lanes at a time. Words are dealt to the lanes that need them
// by a table of permutations indexed by the mask of those lanes.
#include <immintrin.h>

#include <array>
#include <cstring>

#include "codec/kernels/rans_fast.h"

namespace modelstore {
namespace {

constexpr unsigned kVectors = 4;  // of eight lanes: even elements 0-14, 16-30, odd elements 1-15, 17-31

// Row m: for each lane, which of the next words it gets when the lanes in mask m need one.
constexpr auto kDeal = [] {
  std::array<std::array<uint32_t, 8>, 256> rows{};
  for (unsigned m = 0; m < 256; ++m)
    for (unsigned lane = 0, word = 0; lane < 8; ++lane) rows[m][lane] = (m >> lane & 1) ? word++ : 0;
  return rows;
}();

struct Stream {
  __m256i x[kVectors];
  const std::byte* next;
};

inline __m256i Refill(__m256i x, const std::byte*& next) {
  // Unsigned x < 2^16 is: no bit at or above 16.
  const __m256i need = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(need)));
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)));
  const __m256i deal = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kDeal[mask].data()));
  const __m256i dealt = _mm256_permutevar8x32_epi32(words, deal);
  next += 2 * static_cast<unsigned>(_mm_popcnt_u32(mask));
  return _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), dealt), need);
}

inline bool HasGroup(const DecodeJob& job, const Stream& s) {
  return job.elems - job.done >= kLanes && static_cast<size_t>(job.end - s.next) >= kFastPathSlackBytes;
}

// One group: contexts[v] is each lane's row of the slot table. values[v] receives the coded values.
__attribute__((always_inline)) inline void Advance(Stream& s, const uint64_t* slots, const __m256i* contexts,
                                                   __m256i* values) {
  const __m256i prob_mask = _mm256_set1_epi32(kProbScale - 1);
  const __m256i first_max = _mm256_set1_epi32(kFirstRawBits);
  const __m256i one = _mm256_set1_epi32(1);
  const auto* table = reinterpret_cast<const long long*>(slots);
  __m256i raw[kVectors];
  __m256i longest = _mm256_setzero_si256();
  for (unsigned v = 0; v < kVectors; ++v) {
    const __m256i slot = _mm256_and_si256(s.x[v], prob_mask);
    // Lanes 0 1 4 5 and 2 3 6 7, so that the shuffles below bring each half of the entries back into lane order.
    const __m256i index =
        _mm256_permute4x64_epi64(_mm256_or_si256(_mm256_slli_epi32(contexts[v], kProbBits), slot), 0xd8);
    const __m256 a = _mm256_castsi256_ps(_mm256_i32gather_epi64(table, _mm256_castsi256_si128(index), 8));
    const __m256 b = _mm256_castsi256_ps(_mm256_i32gather_epi64(table, _mm256_extracti128_si256(index, 1), 8));
    const __m256i entry = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
    const __m256i symbol = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    const __m256i freq = _mm256_srli_epi32(entry, kSlotFreqShift);
    const __m256i offset = _mm256_and_si256(_mm256_srli_epi32(entry, kSlotOffsetShift), prob_mask);
    const __m256i x = _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(s.x[v], kProbBits)), offset);
    raw[v] = _mm256_srli_epi32(symbol, kSlotRawBitsShift);
    longest = _mm256_max_epu32(longest, raw[v]);
    const __m256i first = _mm256_min_epu32(raw[v], first_max);
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, first), one);
    // The high half's upper bits (raw bits) fall away when the values are joined.
    values[v] = _mm256_add_epi32(symbol, _mm256_and_si256(x, mask));
    s.x[v] = _mm256_srlv_epi32(x, first);
  }
  for (unsigned v = 0; v < kVectors; ++v) s.x[v] = Refill(s.x[v], s.next);
  if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(longest, first_max)) == 0) return;
  for (unsigned v = 0; v < kVectors; ++v) {
    const __m256i rest = _mm256_sub_epi32(_mm256_max_epu32(raw[v], first_max), first_max);
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, rest), one);
    values[v] = _mm256_add_epi32(values[v], _mm256_slli_epi32(_mm256_and_si256(s.x[v], mask), kFirstRawBits));
    s.x[v] = Refill(_mm256_srlv_epi32(s.x[v], rest), s.next);
  }
}

// Values in two vectors of 16 in element order: even elements in the low halves, odd elements in the high halves.
inline __m256i Join(__m256i even, __m256i odd) { return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa); }

template <typename Step>
inline void Run(const Step& step, DecodeJob* jobs, unsigned job_count) {
  const auto load = [](const DecodeJob& job) {
    Stream s;
    for (unsigned v = 0; v < kVectors; ++v)
      s.x[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.state + 8 * v));
    s.next = job.next;
    return s;
  };
  const auto store = [](const Stream& s, DecodeJob& job) {
    for (unsigned v = 0; v < kVectors; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(job.state + 8 * v), s.x[v]);
    job.next = s.next;
  };
  // One stream has four independent vectors already: eight would spill.
  for (unsigned j = 0; j < job_count; ++j) {
    Stream s = load(jobs[j]);
    while (HasGroup(jobs[j], s)) step(jobs[j], s);
    store(s, jobs[j]);
  }
}

struct DeltaStep {
  const uint64_t* slots;
  __m256i exponent_low, exponent_mask;
  __m128i exponent_shift;

  DeltaStep(const DecodeTables& t, const uint64_t* s) : slots(s) {
    exponent_low = _mm256_set1_epi16(static_cast<short>(t.exponent_low));
    exponent_mask = _mm256_set1_epi16(static_cast<short>(t.layout.exponent_mask));
    exponent_shift = _mm_cvtsi32_si128(static_cast<int>(t.layout.exponent_shift));
  }

  inline void operator()(DecodeJob& job, Stream& s) const {
    __m256i prediction[2], contexts[kVectors], values[kVectors];
    for (unsigned h = 0; h < 2; ++h) {
      prediction[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.prediction + job.done * 2 + 32 * h));
      const __m256i exponent = _mm256_and_si256(_mm256_srl_epi16(prediction[h], exponent_shift), exponent_mask);
      const __m256i context =
          _mm256_min_epu16(_mm256_subs_epu16(exponent, exponent_low), _mm256_set1_epi16(kDeltaContexts - 1));
      contexts[h] = _mm256_and_si256(context, _mm256_set1_epi32(0xffff));
      contexts[h + 2] = _mm256_srli_epi32(context, 16);
    }
    Advance(s, slots, contexts, values);
    const __m256i sign = _mm256_set1_epi16(static_cast<short>(0x8000));
    for (unsigned h = 0; h < 2; ++h) {
      const __m256i value = Join(values[h], values[h + 2]);
      const __m256i ordered =
          _mm256_xor_si256(prediction[h], _mm256_or_si256(_mm256_srai_epi16(prediction[h], 15), sign));
      const __m256i negative = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_and_si256(value, _mm256_set1_epi16(1)));
      const __m256i sum = _mm256_add_epi16(ordered, _mm256_xor_si256(_mm256_srli_epi16(value, 1), negative));
      const __m256i flip =
          _mm256_or_si256(_mm256_andnot_si256(_mm256_srai_epi16(sum, 15), _mm256_set1_epi16(-1)), sign);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(job.out + job.done * 2 + 32 * h), _mm256_xor_si256(sum, flip));
    }
    job.done += kLanes;
  }
};

struct SelfStep {
  const uint64_t* slots;
  bool low_bit;

  SelfStep(const DecodeTables& t, const uint64_t* s) : slots(s), low_bit(t.low_bit) {}

  inline void operator()(DecodeJob& job, Stream& s) const {
    __m256i contexts[kVectors], values[kVectors];
    for (__m256i& c : contexts) c = _mm256_set1_epi32(job.classes[job.done / kSelfChunkElems]);
    Advance(s, slots, contexts, values);
    for (unsigned h = 0; h < 2; ++h) {
      const __m256i value = Join(values[h], values[h + 2]);
      const __m256i swapped = _mm256_or_si256(low_bit ? _mm256_srli_epi16(value, 15) : _mm256_srli_epi16(value, 1),
                                              _mm256_slli_epi16(value, 15));
      const __m256i pattern =
          low_bit ? _mm256_or_si256(swapped, _mm256_and_si256(value, _mm256_set1_epi16(0x7ffe))) : swapped;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(job.out + job.done * 2 + 32 * h), pattern);
    }
    job.done += kLanes;
  }
};

void Decode(const DecodeTables& t, const uint64_t* slots, DecodeJob* jobs, unsigned job_count) {
  if (t.delta) {
    Run(DeltaStep(t, slots), jobs, job_count);
  } else {
    Run(SelfStep(t, slots), jobs, job_count);
  }
}

}  // namespace

const RansFastPath kRansAvx2 = {Decode, true};

}  // namespace modelstore
