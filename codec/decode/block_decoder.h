// Coded block -> element bytes (layer: codec/decode). Pure functions, thread-safe, same bits on every CPU target.
#pragma once

#include <cstdint>

#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// Decodes block `index` of a tensor. `prediction` is used only by kDelta and then holds the block's elements of the
// base view in frame.coded_dtype (ConvertElements makes it); `out` has BlockElems(index) * DTypeBytes(dtype) bytes and
// must not overlap the inputs. No buffer needs padding or alignment. Errors: Corruption when the block contradicts
// itself (or was coded against another prediction, as far as the coder's final state shows); `out` then holds garbage.
Status DecodeBlock(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction, MutableByteSpan out);

// An entropy-coded block's parts. The first stream codes the first elements, the second, if there is one, the rest.
struct CodedStreams {
  struct Stream {
    ByteSpan states, words;  // u32, kLanes of them; u16
    uint32_t elems = 0;
  };
  ByteSpan class_map;  // of kSelf: 2 bits a chunk, least significant first; empty: every chunk is of class 0
  Stream streams[2];
  unsigned count = 1;
};
// Precondition: a block of kSelf or kDelta that is not raw. Errors: Corruption.
Result<CodedStreams> SplitBlock(const Frame& frame, uint32_t index, ByteSpan coded);
inline uint8_t ClassOf(ByteSpan class_map, uint32_t chunk) {
  return class_map.empty() ? 0 : std::to_integer<uint8_t>(class_map[chunk / 4] >> (chunk % 4 * 2)) & 3;
}

// Can elements of `from` predict elements of `to`? True for equal types and for any two floating-point types.
bool CanPredict(DType from, DType to);

// Converts n elements, round to nearest even, overflow to infinity (to the largest finite value where the type has no
// infinity), NaN kept NaN. Deterministic integer arithmetic. Precondition: CanPredict(from, to), sizes agree.
void ConvertElements(DType from, DType to, ByteSpan in, MutableByteSpan out);

// Bytes of the decoded block; convenience for DTypeBytes(frame.dtype) * BlockElems(index).
uint32_t BlockBytes(const Frame& frame, uint32_t index);

}  // namespace modelstore
