// CPU-specific encoding of whole groups of 16-bit values (layer: codec/kernels). The plain encoder (codec/encode) is
// the reference; a fast path writes the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/rans_decode.h"

namespace modelstore {

// A stream being encoded backwards, from its last whole group to its first.
struct EncodeJob {
  const uint16_t* values = nullptr;
  const uint8_t* contexts = nullptr;
  size_t groups = 0;                 // of kLanes elements, left to do
  uint32_t* state = nullptr;         // kLanes
  std::byte* next = nullptr;         // words are written below
  const std::byte* floor = nullptr;  // and never below this
  bool uncodable = false;            // out: a value lies in no symbol
};

// Advances `job` until no group is left, a value cannot be coded, or the room above floor does not hold another group.
using EncodeFastPath = void (*)(const DecodeTables& tables, EncodeJob& job);

// The fast path of the CPU target in force, or null.
EncodeFastPath CurrentEncodeFastPath();

void EncodeGroupsAvx512(const DecodeTables& tables, EncodeJob& job);

// The most that a group of 16-bit values takes: two phases of one word a lane.
inline constexpr size_t kEncodeGroupBytes = 2 * 2 * kLanes;

}  // namespace modelstore
