// The loops of ordered_product.h over the vectors of one CPU target (layer: codec/kernels; private to it, included
// after them).
#pragma once

#include <cstddef>
#include <cstring>

#include "codec/kernels/ordered_product.h"

namespace modelstore {
namespace {

constexpr size_t kVectors = kProductColumns / kSimdLanes;

// kRows rows of a by kProductColumns columns of b: their sums stay in registers.
template <size_t kRows>
void Tile(const float* a, size_t stride, size_t depth, const float* b, size_t columns, float* out) {
  F sums[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) std::memcpy(sums[r], out + r * columns, sizeof(sums[r]));
  for (size_t d = 0; d < depth; ++d, b += columns) {
    F right[kVectors];
    std::memcpy(right, b, sizeof(right));
    for (size_t r = 0; r < kRows; ++r) {
      const float left = a[r * stride + d];
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] += left * right[v];
    }
  }
  for (size_t r = 0; r < kRows; ++r) std::memcpy(out + r * columns, sums[r], sizeof(sums[r]));
}

void Product(const float* a, size_t stride, size_t rows, size_t depth, const float* b, size_t columns, float* sums) {
  // The columns of b that are in use are a tile's: they stay in the nearest cache over all rows.
  for (size_t j = 0; j < columns; j += kProductColumns) {
    size_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
      Tile<kTileRows>(a + i * stride, stride, depth, b + j, columns, sums + i * columns + j);
    for (; i < rows; ++i) Tile<1>(a + i * stride, stride, depth, b + j, columns, sums + i * columns + j);
  }
}

}  // namespace
}  // namespace modelstore
