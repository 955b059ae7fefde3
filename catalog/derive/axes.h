// Matrices of a change of basis in F16, and products with them whose bits every machine agrees on (layer:
// catalog/derive). Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

// F16 patterns, rows x columns.
struct Axes {
  uint64_t rows = 0, columns = 0;
  Bytes patterns;
};

// The nearest of F16. Errors: InvalidArgument (not finite, or beyond F16).
Result<std::shared_ptr<const Axes>> MakeAxes(std::span<const double> matrix, uint64_t rows, uint64_t columns);
std::shared_ptr<const Axes> IdentityAxes(uint64_t n);

// Calls task(i) for each i < n, in any order, perhaps several at once.
using ForAll = std::function<Status(size_t n, const std::function<Status(size_t)>& task)>;

// Errors: Unsupported (a value that is not finite).
Status CheckFinite(DType dtype, ByteSpan values);

// What of a weight of `dtype` (BF16, F16, F32) stays, as its bytes; each element is a float32 sum in the order of the
// inner dimension, rounded to nearest even (codec/decode/projected_decoder.h). Errors: Unsupported (an
// element that is not finite).
// W diag(norm) R of W: rows x R.rows. `norm` may be empty.
Status ProjectInputs(DType dtype, ByteSpan weight, std::span<const float> norm, const Axes& right,
                     const ForAll& for_all, MutableByteSpan out);
// L^T W of W: L.rows x columns.
Status ProjectOutputs(DType dtype, ByteSpan weight, uint64_t columns, const Axes& left, const ForAll& for_all,
                      MutableByteSpan out);
// L^T R.
Status Shortcut(DType dtype, const Axes& left, const Axes& right, const ForAll& for_all, MutableByteSpan out);

}  // namespace modelstore
