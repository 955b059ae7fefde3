// The table of CPU-specific fast paths (layer: codec/kernels; private to it).
#pragma once

#include "codec/kernels/cpu_target.h"
#include "codec/kernels/rans_decode.h"

namespace modelstore {

// Advances the jobs by whole groups of kLanes elements while each has enough input for the worst case; may stop at any
// group boundary. `slots` is the slot table, or null for a target that does not want one. The vector targets take
// 16-bit patterns only.
struct RansFastPath {
  void (*decode)(const DecodeTables& tables, const uint64_t* slots, DecodeJob* jobs, unsigned job_count);
  bool wants_slots;
};

// Slot table, for targets that find symbols by look-up: entry [context << kProbBits | slot] has in its low half the
// symbol (8 bits), slot - start (10) and freq (11), in its high half what the vector paths need to know of a 16-bit
// symbol: base (16) and raw bits (5).
inline constexpr unsigned kSlotOffsetShift = 8;
inline constexpr unsigned kSlotFreqShift = 18;
inline constexpr unsigned kSlotRawBitsShift = 16;  // of the high half

extern const RansFastPath kRansPlain;
extern const RansFastPath kRansAvx2;
extern const RansFastPath kRansAvx512;

// A fast path stops when fewer bytes are left: the most that a group of any width takes (symbols and, for 64 bits, four
// more phases) and what a vector load reads beyond.
inline constexpr size_t kFastPathSlackBytes = 2 * kLanes * 5 + 64;

}  // namespace modelstore
