// Products of matrices whose sums have one order, and so the same bits on every CPU target (layer: codec/kernels).
//
// sums += a b in float32: each element goes on as the sum over the depth, from 0 on, of products rounded one by one
// (never contracted). So a product may be made a piece of the depth after the other. Thread-safe; nothing allocates.
#pragma once

#include <cstddef>

namespace modelstore {

inline constexpr size_t kProductColumns = 16;  // b and the sums have a multiple of that

// a: rows x depth, its rows `stride` apart; b: depth x columns, sums: rows x columns, without gaps. Row-major.
using OrderedProduct = void (*)(const float* a, size_t stride, size_t rows, size_t depth, const float* b,
                                size_t columns, float* sums);

// That of the CPU target in force.
OrderedProduct CurrentOrderedProduct();

}  // namespace modelstore
