// RansModel: the symbol tables of coder B (layer: codec/kernels). docs/format.md, "Blocks: coder B".
//
// A coded value v of W bits (8, 16, 32 or 64) belongs to the symbol s of its context with base_s <= v < base_{s+1};
// base_0 = 0 and base_{s+1} = base_s + 2^raw_bits_s. The symbol is coded with probability freq_s / 2^kProbBits, then
// v - base_s as raw_bits_s raw bits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace modelstore {

inline constexpr unsigned kProbBits = 10;
inline constexpr uint32_t kProbScale = 1u << kProbBits;
inline constexpr unsigned kFirstRawBits = 16 - kProbBits;  // raw bits that share the symbol's renormalisation
inline constexpr unsigned kLanes = 32;                     // interleaved states of a stream
inline constexpr uint32_t kStateLow = 1u << 16;            // states live in [2^16, 2^32)
inline constexpr unsigned kDeltaContexts = 16;
inline constexpr unsigned kDeltaSymbols = 8;  // a context
inline constexpr unsigned kSelfClasses = 4;
inline constexpr unsigned kSelfSymbols = 64;      // a class
inline constexpr unsigned kSelfChunkElems = 512;  // elements that share a class

// Element of a lane within its group of kLanes: even elements in lanes 0-15, odd ones in 16-31.
constexpr unsigned LaneElement(unsigned lane) { return 2 * (lane % 16) + lane / 16; }

struct RansSymbol {
  uint64_t base = 0;
  uint16_t start = 0;  // cumulative frequency
  uint16_t freq = 0;   // 0: never occurs
  uint8_t raw_bits = 0;
};

// Symbols of one context, sorted; frequencies sum to kProbScale, or all are 0 in a context that never occurs.
using RansContext = std::vector<RansSymbol>;

struct RansModel {
  uint16_t exponent_low = 0;          // kDelta: context = clamp(exponent(prediction) - exponent_low, 0, 15)
  bool low_bit = false;               // kSelf: the lowest bit leads the coded value
  std::vector<RansContext> contexts;  // kDelta: up to 16, kSelf: up to 4
};

}  // namespace modelstore
