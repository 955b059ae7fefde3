// Conversion between floating-point dtypes in integer arithmetic (layer: codec/kernels). Deterministic on every target:
// round to nearest even; overflow gives infinity, or the largest finite value in E4M3, which has none; NaN stays NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/tensor/dtype.h"

namespace modelstore {

// Bit pattern of the F64 that equals the element (every supported float is exact in F64).
uint64_t WidenToF64(DType from, uint64_t pattern);
// The nearest element of `to`.
uint64_t NarrowFromF64(DType to, uint64_t f64_pattern);

// n elements; both types floating-point; no overlap.
void ConvertFloats(DType from, DType to, const std::byte* in, std::byte* out, size_t n);

}  // namespace modelstore
