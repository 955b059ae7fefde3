// Matrices of a change of basis in fixed point, and products with them whose bits every machine agrees on (layer:
// catalog/derive). Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

// rows x columns, row-major: element = value x 2^exponent.
struct Rotation {
  uint64_t rows = 0, columns = 0;
  int exponent = 0;
  std::vector<int16_t> values;

  // The nearest of the finest exponent that fits. Errors: InvalidArgument (not finite, or beyond 2^100).
  static Result<Rotation> Of(std::span<const double> matrix, uint64_t rows, uint64_t columns);
  static Rotation Identity(uint64_t n);
};

// Calls task(i) for each i < n, in any order, perhaps several at once.
using ForAll = std::function<Status(size_t n, const std::function<Status(size_t)>& task)>;

// What of a weight of `dtype` (BF16, F16, F32) stays, as its bytes; each element is a float32 sum in the order of the
// inner dimension (codec/kernels/ordered_product.h), scaled by a power of two and rounded to nearest even.
// W diag(norm) R of W: rows x R.rows. `norm` may be empty.
Status ProjectInputs(DType dtype, ByteSpan weight, std::span<const float> norm, const Rotation& right,
                     const ForAll& for_all, MutableByteSpan out);
// L^T W of W: L.rows x columns.
Status ProjectOutputs(DType dtype, ByteSpan weight, uint64_t columns, const Rotation& left, const ForAll& for_all,
                      MutableByteSpan out);
// L^T R.
Status Shortcut(DType dtype, const Rotation& left, const Rotation& right, const ForAll& for_all, MutableByteSpan out);

}  // namespace modelstore
