// Projected tensors: W diag(g) R of a stored weight W, computed when it is read (layer: codec/decode; docs/format.md,
// "Projected tensors"). Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

inline constexpr DType kAxesDType = DType::kF16;

// R as the product takes it: depth x columns of F16 patterns as floats, rows padded to kProductColumns with zeros.
std::vector<float> PaddedAxes(ByteSpan axes, uint64_t depth, uint64_t columns);

// Rows of W (`weight`, of `dtype`, depth elements each) times diag(norm) (empty: 1) times the padded axes, as bytes of
// `dtype`: each element is a float32 sum in the order of the depth (codec/kernels/ordered_product.h) of products of
// (w g, rounded) and r, rounded to nearest even.
void ProjectRows(DType dtype, ByteSpan weight, std::span<const float> norm, std::span<const float> axes,
                 uint64_t columns, MutableByteSpan out);

// The rows of `frame`'s tensor that its block `index` is in.
struct ProjectedRows {
  uint64_t first = 0, count = 0;
  uint64_t skip_elems = 0;  // of the first row, before the block
};
ProjectedRows RowsOfBlock(const Frame& frame, uint32_t index);

// How many rows are computed at once, and what decoding a block holds besides its bytes and what others decode.
inline constexpr uint64_t kProjectedPanelRows = 64;
uint64_t ProjectedBytes(const Frame& frame);

}  // namespace modelstore
