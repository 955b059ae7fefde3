// The fast path without vector instructions, for every width: a slot table, no branch on refills, 32 independent states
// to keep the core busy.
#include <algorithm>
#include <cstring>

#include "codec/kernels/rans_fast.h"

namespace modelstore {
namespace {

template <typename U>
U LoadAt(const std::byte* p) {
  U u;
  std::memcpy(&u, p, sizeof(U));
  return u;
}

// Takes the next word when the state fell below its lower bound; in arithmetic, because a branch on it is a coin toss.
// The word is always loaded: the caller leaves slack.
inline uint32_t Refill(uint32_t x, const std::byte*& next) {
  const uint32_t need = x < kStateLow ? 1 : 0;
  const uint32_t word = LoadAt<uint16_t>(next);
  next += 2 * need;
  return (x << (16 * need)) | (word & (0 - need));
}

template <typename U, bool kDeltaStream>
void DecodeGroups(const DecodeTables& t, const uint64_t* slots, DecodeJob& job) {
  const unsigned symbol_bits = kDeltaStream ? 3 : 6;
  struct Symbol {
    U base;
    uint8_t raw_bits;
    uint8_t first_bits;
  };
  Symbol symbols[kSelfClasses * kSelfSymbols];
  for (size_t i = 0; i < t.base.size(); ++i)
    symbols[i] = {static_cast<U>(t.base[i]), t.raw_bits[i],
                  static_cast<uint8_t>(std::min<unsigned>(t.raw_bits[i], kFirstRawBits))};

  uint32_t state[kLanes];
  std::memcpy(state, job.state, sizeof(state));
  const std::byte* next = job.next;
  while (job.elems - job.done >= kLanes && static_cast<size_t>(job.end - next) >= kFastPathSlackBytes) {
    U prediction[kLanes];
    uint32_t context[kLanes];
    if constexpr (kDeltaStream) {
      std::memcpy(prediction, job.prediction + job.done * sizeof(U), sizeof(prediction));
      const int32_t low = static_cast<int32_t>(t.exponent_low);
      for (unsigned e = 0; e < kLanes; ++e) {
        const int32_t exponent = static_cast<int32_t>(static_cast<uint32_t>(prediction[e] >> t.layout.exponent_shift) &
                                                      t.layout.exponent_mask);
        context[e] = static_cast<uint32_t>(std::clamp<int32_t>(exponent - low, 0, kDeltaContexts - 1));
      }
    } else {
      std::fill_n(context, kLanes, uint32_t{job.classes[job.done / kSelfChunkElems]});
    }
    U value[kLanes];
    uint8_t raw_bits[kLanes];
    unsigned longest = 0;
    // Lanes 0-15 hold the even elements, lanes 16-31 the odd ones.
    for (unsigned odd = 0; odd < 2; ++odd) {
      for (unsigned i = 0; i < 16; ++i) {
        const unsigned e = 2 * i + odd;
        uint32_t x = state[16 * odd + i];
        const uint64_t entry = slots[(context[e] << kProbBits) + (x & (kProbScale - 1))];
        const uint32_t slot = static_cast<uint32_t>(entry);
        const Symbol& s = symbols[(context[e] << symbol_bits) + (slot & 0xff)];
        x = (slot >> kSlotFreqShift) * (x >> kProbBits) + ((slot >> kSlotOffsetShift) & (kProbScale - 1));
        value[e] = static_cast<U>(s.base + (x & ((1u << s.first_bits) - 1)));
        raw_bits[e] = s.raw_bits;
        longest |= s.raw_bits > kFirstRawBits ? s.raw_bits : 0;
        state[16 * odd + i] = Refill(x >> s.first_bits, next);
      }
    }
    for (unsigned shift = kFirstRawBits; longest > shift; shift += 16) {
      for (unsigned lane = 0; lane < kLanes; ++lane) {
        const unsigned e = LaneElement(lane);
        if (raw_bits[e] <= shift) continue;
        const unsigned bits = std::min<unsigned>(raw_bits[e] - shift, 16);
        const uint32_t x = state[lane];
        value[e] = static_cast<U>(value[e] + (uint64_t{x & ((1u << bits) - 1)} << shift));
        state[lane] = Refill(x >> bits, next);
      }
    }
    U pattern[kLanes];
    for (unsigned e = 0; e < kLanes; ++e) {
      if constexpr (kDeltaStream) {
        pattern[e] = FromDeltaValue(value[e], prediction[e]);
      } else {
        pattern[e] = FromSelfValue(value[e], t.low_bit);
      }
    }
    std::memcpy(job.out + job.done * sizeof(U), pattern, sizeof(pattern));
    job.done += kLanes;
  }
  std::memcpy(job.state, state, sizeof(state));
  job.next = next;
}

template <typename U>
void DecodeWidth(const DecodeTables& t, const uint64_t* slots, DecodeJob* jobs, unsigned job_count) {
  for (unsigned j = 0; j < job_count; ++j) {
    if (t.delta) {
      DecodeGroups<U, true>(t, slots, jobs[j]);
    } else {
      DecodeGroups<U, false>(t, slots, jobs[j]);
    }
  }
}

void Decode(const DecodeTables& t, const uint64_t* slots, DecodeJob* jobs, unsigned job_count) {
  switch (t.layout.width_bits) {
    case 8:
      return DecodeWidth<uint8_t>(t, slots, jobs, job_count);
    case 16:
      return DecodeWidth<uint16_t>(t, slots, jobs, job_count);
    case 32:
      return DecodeWidth<uint32_t>(t, slots, jobs, job_count);
    default:
      return DecodeWidth<uint64_t>(t, slots, jobs, job_count);
  }
}

}  // namespace

const RansFastPath kRansPlain = {Decode, true};

}  // namespace modelstore
