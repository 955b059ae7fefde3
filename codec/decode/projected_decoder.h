// Projected tensors: W diag(g) R of a stored weight W, computed when it is read (layer: codec/decode; docs/format.md,
// "Projected tensors").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

inline constexpr DType kAxesDType = DType::kF16;

// Some rows of a product, made a piece of the axes after the other, so that these need not be in memory at once. Each
// element is a float32 sum in the order of the depth (codec/kernels/ordered_product.h) of products of (w g, rounded)
// and r, rounded to nearest even.
class RowProjector {
 public:
  // `weight`: rows of `depth` elements of `dtype` (BF16, F16, F32). `norm`: depth of them, or none.
  RowProjector(DType dtype, ByteSpan weight, std::span<const float> norm, uint64_t depth, uint64_t columns);
  // The next rows of the axes: F16 patterns, `columns` a row.
  void Add(ByteSpan axes);
  // Once all were added: rows x columns of `dtype`, without the first `skip` elements and as many as fit `out`.
  void Finish(uint64_t skip, MutableByteSpan out);

 private:
  const DType dtype_;
  const uint64_t depth_, columns_, padded_, rows_;
  uint64_t done_ = 0;  // rows of the axes
  std::vector<float> weight_, axes_, sums_;
};

// How many rows of the axes are added at once by a reader.
inline constexpr uint64_t kAxesPanelRows = 64;

// The rows of `frame`'s tensor that its block `index` is in.
struct ProjectedRows {
  uint64_t first = 0, count = 0;
  uint64_t skip_elems = 0;  // of the first row, before the block
};
ProjectedRows RowsOfBlock(const Frame& frame, uint32_t index);
// What decoding a block holds besides its bytes and what others decode.
uint64_t ProjectedBytes(const Frame& frame);

}  // namespace modelstore
