// Rebuilding blocks of compact tensors (layer: codec/decode). Pure functions, thread-safe, same bits on every CPU
// target.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/decode/compact_frame.h"
#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// Elements [begin, begin + elems) of a segment: at most one block's share of it. What of each tensor its rebuilding
// needs; ranges of no elements where it needs nothing.
struct CompactPiece {
  struct Range {
    uint64_t begin = 0, count = 0;
  };
  const CompactSegment* segment = nullptr;
  uint64_t begin = 0, elems = 0;  // within the segment
  uint64_t block_begin = 0;       // its first element within the block
  Range right, left;              // tokens of `factors`: v, and u of the rows that the piece touches
  Range residual;                 // tokens of `residual`
  Range scales;                   // of the low-rank part
  Range steps;                    // scales of the residual's groups that the piece touches
};

// The pieces that tile block `index`. Precondition: frame.encoding is kCompact, index < frame.BlockCount().
std::vector<CompactPiece> CompactPieces(const Frame& frame, uint32_t index);

// The ranges' content: tokens are patterns of U16, scales and steps of BF16; in the machine's byte order, unaligned.
struct CompactInputs {
  ByteSpan right, left, residual, scales, steps;
};

// Errors: Corruption when a span has another size than its range, or a scale is not below 2^64. `has_residual`: false
// when the residual's tokens are elsewhere.
Status CheckInputs(const CompactPiece& piece, const CompactInputs& inputs, bool has_residual = true);

// Rows that the piece touches, those of them that have factors (counted among those of the segment), and columns.
struct PieceExtent {
  uint64_t first_row = 0, end_row = 0;
  uint64_t first_factor_row = 0, end_factor_row = 0;
  uint64_t first_column = 0, end_column = 0;  // of all rows together
  // The first row's level among those of the piece's left tokens.
  uint64_t first_left_level(uint32_t rank) const { return first_factor_row * rank % kFactorTokenLevels; }
};
PieceExtent ExtentOf(const CompactPiece& piece);

// Memory that RebuildPiece uses; keep it for the next piece.
struct CompactScratch {
  std::vector<float> floats;
  std::vector<int8_t> levels;
};

// The most bytes that a block's pieces, the inputs of one of them and its scratch take together.
uint64_t MaxPieceBytes(const Frame& frame);

// `prediction`: the piece's elements of the base view in frame.coded_dtype (= dtype); `out`: the piece's elements; no
// overlap. Errors: Corruption when a span has another size than its range, or a token stands for no levels.
Status RebuildPiece(const Frame& frame, const CompactPiece& piece, const CompactInputs& inputs, ByteSpan prediction,
                    CompactScratch& scratch, MutableByteSpan out);

}  // namespace modelstore
