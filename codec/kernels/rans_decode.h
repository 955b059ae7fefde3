// Decoding of coder B's streams (layer: codec/kernels). docs/format.md, "Blocks: coder B".
//
// A block has one or two streams, each an independent set of 32 interleaved rANS states; decoding two in turn hides the
// latency of one behind the other. The plain decoder is the reference; a CPU target's fast path decodes whole groups of
// 32 while the input surely suffices and leaves the rest to it. Nothing allocates except BuildSlotTable; every word
// read is bounded, whatever the input says. Thread-safe: tables are read only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec/kernels/rans_tables.h"
#include "codec/kernels/value_map.h"

namespace modelstore {

// A RansModel laid out for decoding: entry [context * symbols + s].
struct DecodeTables {
  uint64_t serial = 0;    // of this process: tells one set of tables from another, as an address could not
  unsigned symbols = 0;   // a context: kDeltaSymbols or kSelfSymbols
  unsigned contexts = 0;  // kDeltaContexts or kSelfClasses
  bool delta = false;
  bool low_bit = false;
  uint32_t exponent_low = 0;
  FloatLayout layout;           // of the coded dtype
  std::vector<uint16_t> start;  // kProbScale where no symbol follows
  std::vector<uint64_t> base;
  std::vector<uint8_t> raw_bits;

  uint32_t ContextOf(uint64_t prediction) const {
    const uint32_t e = static_cast<uint32_t>(prediction >> layout.exponent_shift) & layout.exponent_mask;
    const uint32_t c = e > exponent_low ? e - exponent_low : 0;
    return c < kDeltaContexts ? c : kDeltaContexts - 1;
  }
};

DecodeTables BuildDecodeTables(const RansModel& model, bool delta, DType coded_dtype);

// One stream under way.
struct DecodeJob {
  uint32_t state[kLanes];
  const std::byte* next = nullptr;  // 16-bit words, unaligned
  const std::byte* end = nullptr;
  size_t elems = 0;
  size_t done = 0;                        // multiple of kLanes until finished
  const std::byte* prediction = nullptr;  // delta: elems patterns
  const uint8_t* classes = nullptr;       // self: one a chunk of kSelfChunkElems
  std::byte* out = nullptr;               // elems patterns
};

// Decodes the jobs (1 or 2) to their ends. False when the stream does not end as an encoder's does: words missing or
// left over, or a state other than the initial one.
bool DecodeStreams(const DecodeTables& tables, DecodeJob* jobs, unsigned job_count);

}  // namespace modelstore
