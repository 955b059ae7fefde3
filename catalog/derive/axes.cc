#include "catalog/derive/axes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "codec/decode/block_decoder.h"
#include "codec/decode/projected_decoder.h"
#include "codec/kernels/convert.h"
#include "codec/kernels/ordered_product.h"

namespace modelstore {
namespace {

constexpr uint64_t kPanelRows = 256;
constexpr uint64_t kPanelColumns = 512;
constexpr double kLargestF16 = 65504;

// A matrix of `dtype` with its rows as columns, as `dtype`.
Bytes Transposed(ByteSpan matrix, uint64_t width, uint64_t rows, uint64_t columns) {
  Bytes out(matrix.size());
  for (uint64_t i = 0; i < rows; ++i) {
    for (uint64_t j = 0; j < columns; ++j)
      std::memcpy(out.data() + (j * rows + i) * width, matrix.data() + (i * columns + j) * width, width);
  }
  return out;
}

// Columns [begin, begin + count) of a matrix.
Bytes ColumnsOf(ByteSpan matrix, uint64_t width, uint64_t columns, uint64_t begin, uint64_t count) {
  Bytes out;
  out.reserve(matrix.size() / columns * count);
  for (uint64_t at = begin * width; at < matrix.size(); at += columns * width) {
    const ByteSpan row = matrix.subspan(at, count * width);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

std::vector<float> Widened(DType dtype, ByteSpan values) {
  std::vector<float> out(values.size() / DTypeBytes(dtype));
  ConvertElements(dtype, DType::kF32, values, std::as_writable_bytes(std::span(out)));
  return out;
}

// Rows padded as products take them.
std::vector<float> Padded(const std::vector<float>& matrix, uint64_t columns, uint64_t padded) {
  const uint64_t rows = matrix.size() / columns;
  std::vector<float> out(rows * padded);
  for (uint64_t i = 0; i < rows; ++i)
    std::copy_n(matrix.begin() + static_cast<ptrdiff_t>(i * columns), columns,
                out.begin() + static_cast<ptrdiff_t>(i * padded));
  return out;
}

// L^T times what has `columns` columns of `dtype`, to `out`.
Status MultiplyLeft(DType out_dtype, const Axes& left, DType dtype, ByteSpan right, uint64_t columns,
                    const ForAll& for_all, MutableByteSpan out) {
  const uint64_t width = DTypeBytes(dtype), out_width = DTypeBytes(out_dtype), rows = left.columns;
  const std::vector<float> a =
      Widened(kAxesDType, Transposed(left.patterns, DTypeBytes(kAxesDType), left.rows, left.columns));
  const Status made = for_all((columns + kPanelColumns - 1) / kPanelColumns, [&](size_t panel) {
    const uint64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, columns - first);
    const uint64_t padded = (count + kProductColumns - 1) / kProductColumns * kProductColumns;
    const std::vector<float> b = Padded(Widened(dtype, ColumnsOf(right, width, columns, first, count)), count, padded);
    std::vector<float> product(rows * padded);
    CurrentOrderedProduct()(a.data(), left.rows, rows, left.rows, b.data(), padded, product.data());
    for (uint64_t i = 0; i < rows; ++i) {
      ConvertElements(DType::kF32, out_dtype, std::as_bytes(std::span(product).subspan(i * padded, count)),
                      out.subspan((i * columns + first) * out_width, count * out_width));
    }
    return OkStatus();
  });
  RETURN_IF_ERROR(made);
  return CheckFinite(out_dtype, out);
}

Status CheckSizes(DType dtype, uint64_t in_bytes, uint64_t in_elems, uint64_t out_bytes, uint64_t out_elems) {
  if (!IsProjectable(dtype))
    return Unsupported("weights of dtype " + std::string(DTypeName(dtype)) + " cannot be sliced");
  if (in_bytes != in_elems * DTypeBytes(dtype) || out_bytes != out_elems * DTypeBytes(dtype))
    return Internal("a product of matrices that do not fit");
  return OkStatus();
}

}  // namespace

// NaN of two kinds would be either, by the CPU; and such a model is none.
Status CheckFinite(DType dtype, ByteSpan values) {
  if (std::ranges::all_of(Widened(dtype, values), [](float x) { return std::isfinite(x); })) return OkStatus();
  return Unsupported("its weights are not finite, or not once they are sliced");
}

Result<std::shared_ptr<const Axes>> MakeAxes(std::span<const double> matrix, uint64_t rows, uint64_t columns) {
  auto axes = std::make_shared<Axes>(Axes{rows, columns, Bytes(matrix.size() * sizeof(uint16_t))});
  for (size_t i = 0; i < matrix.size(); ++i) {
    if (!(std::abs(matrix[i]) < kLargestF16))
      return InvalidArgument("a change of basis that is not finite, or too large");
    const auto pattern = static_cast<uint16_t>(NarrowFromF64(kAxesDType, std::bit_cast<uint64_t>(matrix[i])));
    std::memcpy(axes->patterns.data() + i * sizeof(pattern), &pattern, sizeof(pattern));
  }
  return std::shared_ptr<const Axes>(std::move(axes));
}

std::shared_ptr<const Axes> IdentityAxes(uint64_t n) {
  std::vector<double> ones(n * n, 0);
  for (uint64_t i = 0; i < n; ++i) ones[i * n + i] = 1;
  return *MakeAxes(ones, n, n);
}

Status ProjectInputs(DType dtype, ByteSpan weight, std::span<const float> norm, const Axes& right,
                     const ForAll& for_all, MutableByteSpan out) {
  const uint64_t depth = right.rows, columns = right.columns, width = DTypeBytes(dtype);
  const uint64_t rows = weight.size() / (depth * width);
  RETURN_IF_ERROR(CheckSizes(dtype, weight.size(), rows * depth, out.size(), rows * columns));
  const Status made = for_all((rows + kPanelRows - 1) / kPanelRows, [&](size_t panel) {
    const uint64_t first = panel * kPanelRows, count = std::min(kPanelRows, rows - first);
    RowProjector projector(dtype, weight.subspan(first * depth * width, count * depth * width), norm, depth, columns);
    projector.Add(right.patterns);
    projector.Finish(0, out.subspan(first * columns * width, count * columns * width));
    return OkStatus();
  });
  RETURN_IF_ERROR(made);
  return CheckFinite(dtype, out);
}

Status ProjectOutputs(DType dtype, ByteSpan weight, uint64_t columns, const Axes& left, const ForAll& for_all,
                      MutableByteSpan out) {
  RETURN_IF_ERROR(CheckSizes(dtype, weight.size(), left.rows * columns, out.size(), left.columns * columns));
  return MultiplyLeft(dtype, left, dtype, weight, columns, for_all, out);
}

Status Shortcut(DType dtype, const Axes& left, const Axes& right, const ForAll& for_all, MutableByteSpan out) {
  if (right.rows != left.rows) return Internal("a product of matrices that do not fit");
  RETURN_IF_ERROR(CheckSizes(dtype, 0, 0, out.size(), left.columns * right.columns));
  return MultiplyLeft(dtype, left, kAxesDType, right.patterns, right.columns, for_all, out);
}

}  // namespace modelstore
