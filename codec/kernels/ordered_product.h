// Products of matrices whose sums have one order, and so the same bits on every CPU target (layer: codec/kernels).
//
// out = a b in float32: each element is the sum over the depth, from 0 on, of products rounded one by one (never
// contracted). Thread-safe; nothing allocates.
#pragma once

#include <cstddef>

namespace modelstore {

inline constexpr size_t kProductColumns = 16;  // b and out have a multiple of that

// a: rows x depth, b: depth x columns, out: rows x columns; row-major, without gaps.
using OrderedProduct = void (*)(const float* a, size_t rows, size_t depth, const float* b, size_t columns, float* out);

// That of the CPU target in force.
OrderedProduct CurrentOrderedProduct();

}  // namespace modelstore
