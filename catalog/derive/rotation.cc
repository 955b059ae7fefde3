#include "catalog/derive/rotation.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "codec/kernels/convert.h"
#include "codec/kernels/ordered_product.h"

namespace modelstore {
namespace {

constexpr int kValueBits = 15;
constexpr int kLargestExponent = 100;
constexpr uint64_t kPanelRows = 256;
constexpr uint64_t kPanelColumns = 512;

uint64_t Padded(uint64_t columns) { return (columns + kProductColumns - 1) / kProductColumns * kProductColumns; }

// Columns [begin, begin + count) of a rows x columns matrix, padded with zeros.
std::vector<float> Panel(const Rotation& matrix, uint64_t begin, uint64_t count) {
  std::vector<float> out(matrix.rows * Padded(count));
  for (uint64_t i = 0; i < matrix.rows; ++i) {
    for (uint64_t j = 0; j < count; ++j)
      out[i * Padded(count) + j] = static_cast<float>(matrix.values[i * matrix.columns + begin + j]);
  }
  return out;
}

// Its columns as rows.
std::vector<float> Transposed(const Rotation& matrix) {
  std::vector<float> out(matrix.values.size());
  for (uint64_t i = 0; i < matrix.rows; ++i) {
    for (uint64_t j = 0; j < matrix.columns; ++j)
      out[j * matrix.rows + i] = static_cast<float>(matrix.values[i * matrix.columns + j]);
  }
  return out;
}

// rows x columns of a product that is padded, times 2^exponent, as `dtype`: to row `row`, column `column` of `out`,
// whose rows have `out_columns`.
void Store(DType dtype, std::vector<float>& product, uint64_t rows, uint64_t columns, int exponent, uint64_t row,
           uint64_t column, uint64_t out_columns, MutableByteSpan out) {
  const float scale = std::ldexp(1.0f, exponent);
  for (float& x : product) x *= scale;
  const uint64_t width = DTypeBytes(dtype);
  for (uint64_t i = 0; i < rows; ++i) {
    const auto* in = reinterpret_cast<const std::byte*>(product.data() + i * Padded(columns));
    std::byte* to = out.data() + ((row + i) * out_columns + column) * width;
    if (dtype == DType::kF32)
      std::copy_n(in, columns * width, to);
    else
      ConvertFloats(DType::kF32, dtype, in, to, columns);
  }
}

void Widen(DType dtype, const std::byte* in, uint64_t n, float* out) {
  auto* to = reinterpret_cast<std::byte*>(out);
  if (dtype == DType::kF32)
    std::copy_n(in, n * sizeof(float), to);
  else
    ConvertFloats(dtype, DType::kF32, in, to, n);
}

Status CheckSizes(DType dtype, uint64_t in_bytes, uint64_t in_elems, uint64_t out_bytes, uint64_t out_elems) {
  if (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32)
    return Unsupported("weights of dtype " + std::string(DTypeName(dtype)) + " cannot be sliced");
  if (in_bytes != in_elems * DTypeBytes(dtype) || out_bytes != out_elems * DTypeBytes(dtype))
    return Internal("a product of matrices that do not fit");
  return OkStatus();
}

}  // namespace

Result<Rotation> Rotation::Of(std::span<const double> matrix, uint64_t rows, uint64_t columns) {
  double largest = 0;
  for (const double x : matrix) {
    if (!std::isfinite(x)) return InvalidArgument("a change of basis that is not finite");
    largest = std::max(largest, std::abs(x));
  }
  Rotation out{rows, columns, 0, {}};
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest < 2^exponent
  if (std::abs(exponent) > kLargestExponent) return InvalidArgument("a change of basis beyond 2^100");
  out.exponent = exponent - kValueBits;
  for (const double x : matrix) {
    const double value = std::nearbyint(std::ldexp(x, -out.exponent));
    out.values.push_back(static_cast<int16_t>(std::clamp(value, -32767.0, 32767.0)));
  }
  return out;
}

Rotation Rotation::Identity(uint64_t n) {
  Rotation out{n, n, 0, std::vector<int16_t>(n * n)};
  for (uint64_t i = 0; i < n; ++i) out.values[i * n + i] = 1;
  return out;
}

Status ProjectInputs(DType dtype, ByteSpan weight, std::span<const float> norm, const Rotation& right,
                     const ForAll& for_all, MutableByteSpan out) {
  const uint64_t depth = right.rows, columns = right.columns, width = DTypeBytes(dtype);
  const uint64_t rows = weight.size() / (depth * width);
  RETURN_IF_ERROR(CheckSizes(dtype, weight.size(), rows * depth, out.size(), rows * columns));
  const std::vector<float> b = Panel(right, 0, columns);
  return for_all((rows + kPanelRows - 1) / kPanelRows, [&](size_t panel) {
    const uint64_t first = panel * kPanelRows, count = std::min(kPanelRows, rows - first);
    std::vector<float> a(count * depth), product(count * Padded(columns));
    Widen(dtype, weight.data() + first * depth * width, a.size(), a.data());
    for (uint64_t i = 0; i < count && !norm.empty(); ++i) {
      for (uint64_t d = 0; d < depth; ++d) a[i * depth + d] *= norm[d];
    }
    CurrentOrderedProduct()(a.data(), count, depth, b.data(), Padded(columns), product.data());
    Store(dtype, product, count, columns, right.exponent, first, 0, columns, out);
    return OkStatus();
  });
}

Status ProjectOutputs(DType dtype, ByteSpan weight, uint64_t columns, const Rotation& left, const ForAll& for_all,
                      MutableByteSpan out) {
  const uint64_t depth = left.rows, rows = left.columns, width = DTypeBytes(dtype);
  RETURN_IF_ERROR(CheckSizes(dtype, weight.size(), depth * columns, out.size(), rows * columns));
  const std::vector<float> a = Transposed(left);
  return for_all((columns + kPanelColumns - 1) / kPanelColumns, [&](size_t panel) {
    const uint64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, columns - first);
    std::vector<float> b(depth * Padded(count)), product(rows * Padded(count));
    for (uint64_t d = 0; d < depth; ++d)
      Widen(dtype, weight.data() + (d * columns + first) * width, count, b.data() + d * Padded(count));
    CurrentOrderedProduct()(a.data(), rows, depth, b.data(), Padded(count), product.data());
    Store(dtype, product, rows, count, left.exponent, 0, first, columns, out);
    return OkStatus();
  });
}

Status Shortcut(DType dtype, const Rotation& left, const Rotation& right, const ForAll& for_all, MutableByteSpan out) {
  const uint64_t depth = left.rows, rows = left.columns, columns = right.columns;
  if (right.rows != depth) return Internal("a product of matrices that do not fit");
  RETURN_IF_ERROR(CheckSizes(dtype, 0, 0, out.size(), rows * columns));
  const std::vector<float> a = Transposed(left);
  return for_all((columns + kPanelColumns - 1) / kPanelColumns, [&](size_t panel) {
    const uint64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, columns - first);
    const std::vector<float> b = Panel(right, first, count);
    std::vector<float> product(rows * Padded(count));
    CurrentOrderedProduct()(a.data(), rows, depth, b.data(), Padded(count), product.data());
    Store(dtype, product, rows, count, left.exponent + right.exponent, 0, first, columns, out);
    return OkStatus();
  });
}

}  // namespace modelstore
