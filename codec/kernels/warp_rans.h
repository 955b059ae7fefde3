// Decoding of one of coder B's streams by a warp (layer: codec/kernels). docs/format.md, "Blocks: coder B".
//
// The lanes are the stream's 32 states; a refill is a ballot, and a lane's word is as many behind the next one as lanes
// before it need one. Symbols are found in a table of slots, which a GPU keeps in shared memory (17 KiB at most). Reads
// of words are clamped to the stream's, whatever it says; all other sizes are the caller's to check (codec/device).
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/rans_tables.h"
#include "codec/kernels/value_map.h"
#include "codec/kernels/warp.h"

namespace modelstore {

// A symbol: start (10 bits), freq (11), raw bits (7, the largest is 64), and the low half of its base.
struct WarpSymbol {
  uint32_t packed;
  uint32_t base;
};
inline constexpr unsigned kWarpFreqShift = 10;
inline constexpr unsigned kWarpRawBitsShift = 21;

// Of a tensor.
struct WarpTables {
  const uint8_t* slots;        // entry [context << kProbBits | slot]: the symbol
  const WarpSymbol* symbols;   // entry [context * context_symbols + symbol]
  const uint32_t* high_bases;  // the same: the high half of the base; used by patterns of 64 bits alone
  uint32_t context_symbols;
  uint32_t exponent_low, exponent_shift, exponent_mask;  // of a delta
  bool low_bit;                                          // of a self-coded one
};

struct WarpStream {
  const uint32_t* states;  // kLanes
  const uint16_t* words;
  uint32_t word_count;
  uint32_t elems;
  const void* prediction;  // of a delta: elems patterns
  const uint8_t* classes;  // of a self-coded one: one a chunk of kSelfChunkElems
  void* out;               // elems patterns
};

// How patterns leave a decoder: as they are, or BF16 as the F32 that they are the upper half of.
enum class WarpOutput { kPatterns, kWidened };

namespace warp_rans {

template <typename U>
struct Lane {
  uint32_t x;
  U value, prediction;
  U ahead;        // the next group's prediction: asked for a group early, as memory is far away
  uint32_t rest;  // raw bits still to read
  bool takes;     // part in this phase
};

// The next word for every lane of the phase whose state fell below its lower bound; what comes after them.
template <typename Warp, typename U>
MODELSTORE_DEVICE uint32_t Refill(const WarpStream& stream, uint32_t next,
                                  typename Warp::template Lanes<Lane<U>>& lanes) {
  const uint32_t needing = Warp::Ballot(lanes, [](const Lane<U>& l) { return l.takes && l.x < kStateLow; });
  Warp::Each(lanes, [&](unsigned lane, Lane<U>& l) {
    if (!l.takes || l.x >= kStateLow) return;
    const uint32_t at = next + RankIn<Warp>(needing, lane);
    l.x = l.x << 16 | (at < stream.word_count ? stream.words[at] : 0u);
  });
  return next + Warp::Count(needing);
}

// 0 behind the stream's end.
template <typename U>
MODELSTORE_DEVICE U PredictionAt(const WarpStream& stream, uint32_t element) {
  return element < stream.elems ? static_cast<const U*>(stream.prediction)[element] : U{0};
}

// Elements [done, done + kLanes) of the stream, as far as it has them (kWhole: all of them); what comes after their
// words.
template <typename Warp, typename U, bool kDelta, WarpOutput kOutput, bool kWhole>
MODELSTORE_DEVICE uint32_t DecodeGroup(const WarpTables& tables, const WarpStream& stream, uint32_t done, uint32_t next,
                                       typename Warp::template Lanes<Lane<U>>& lanes) {
  Warp::Each(lanes, [&](unsigned lane, Lane<U>& l) {
    const uint32_t e = done + LaneElement(lane);
    l.takes = kWhole || e < stream.elems;
    l.rest = 0;
    if (!l.takes) return;
    uint32_t context;
    if constexpr (kDelta) {
      l.prediction = l.ahead;
      l.ahead = PredictionAt<U>(stream, e + kLanes);
      const uint32_t exponent = static_cast<uint32_t>(l.prediction >> tables.exponent_shift) & tables.exponent_mask;
      context = exponent > tables.exponent_low ? exponent - tables.exponent_low : 0;
      context = context < kDeltaContexts ? context : kDeltaContexts - 1;
    } else {
      context = stream.classes[e / kSelfChunkElems];
    }
    const uint32_t slot = l.x & (kProbScale - 1);
    const uint32_t at = context * tables.context_symbols + tables.slots[context << kProbBits | slot];
    const WarpSymbol symbol = tables.symbols[at];
    const uint32_t raw_bits = symbol.packed >> kWarpRawBitsShift;
    const uint32_t first_bits = raw_bits < kFirstRawBits ? raw_bits : kFirstRawBits;
    const uint32_t freq = symbol.packed >> kWarpFreqShift & (2 * kProbScale - 1);
    const uint32_t x = freq * (l.x >> kProbBits) + slot - (symbol.packed & (kProbScale - 1));
    U base = static_cast<U>(symbol.base);
    if constexpr (sizeof(U) == 8) base |= static_cast<U>(tables.high_bases[at]) << 32;
    l.value = static_cast<U>(base + (x & ((1u << first_bits) - 1)));
    l.x = x >> first_bits;
    l.rest = raw_bits - first_bits;
  });
  next = Refill<Warp, U>(stream, next, lanes);
  const auto has_more = [](const Lane<U>& l) { return l.rest != 0; };
  for (unsigned shift = kFirstRawBits; Warp::Ballot(lanes, has_more) != 0; shift += 16) {
    Warp::Each(lanes, [&](unsigned, Lane<U>& l) {
      l.takes = l.rest != 0;
      if (!l.takes) return;
      const uint32_t bits = l.rest < 16 ? l.rest : 16;
      l.value = static_cast<U>(l.value + (static_cast<uint64_t>(l.x & ((1u << bits) - 1)) << shift));
      l.x >>= bits;
      l.rest -= bits;
    });
    next = Refill<Warp, U>(stream, next, lanes);
  }
  Warp::Each(lanes, [&](unsigned lane, Lane<U>& l) {
    const uint32_t e = done + LaneElement(lane);
    if (!kWhole && e >= stream.elems) return;
    U pattern;
    if constexpr (kDelta) {
      pattern = FromDeltaValue(l.value, l.prediction);
    } else {
      pattern = FromSelfValue(l.value, tables.low_bit);
    }
    if constexpr (kOutput == WarpOutput::kWidened) {
      static_cast<uint32_t*>(stream.out)[e] = static_cast<uint32_t>(pattern) << 16;
    } else {
      static_cast<U*>(stream.out)[e] = pattern;
    }
  });
  return next;
}

}  // namespace warp_rans

// False when the stream does not end as an encoder's does: words missing or left over, or a state other than the
// initial one; `out` then holds garbage. U: the unsigned integer of the coded dtype's width.
template <typename Warp, typename U, bool kDelta, WarpOutput kOutput = WarpOutput::kPatterns>
MODELSTORE_DEVICE bool DecodeStream(const WarpTables& tables, const WarpStream& stream) {
  using Lane = warp_rans::Lane<U>;
  typename Warp::template Lanes<Lane> lanes;
  Warp::Each(lanes, [&](unsigned lane, Lane& l) {
    l.x = stream.states[lane];
    l.ahead = kDelta ? warp_rans::PredictionAt<U>(stream, LaneElement(lane)) : U{0};
  });
  uint32_t next = 0, done = 0;
  for (; stream.elems - done >= kLanes; done += kLanes) {
    next = warp_rans::DecodeGroup<Warp, U, kDelta, kOutput, true>(tables, stream, done, next, lanes);
    if (next > stream.word_count) return false;
  }
  if (done < stream.elems)
    next = warp_rans::DecodeGroup<Warp, U, kDelta, kOutput, false>(tables, stream, done, next, lanes);
  return next == stream.word_count && Warp::Ballot(lanes, [](const Lane& l) { return l.x != kStateLow; }) == 0;
}

}  // namespace modelstore
