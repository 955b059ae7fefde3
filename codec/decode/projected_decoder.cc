#include "codec/decode/projected_decoder.h"

#include <algorithm>

#include "codec/kernels/convert.h"
#include "codec/kernels/ordered_product.h"

namespace modelstore {
namespace {

uint64_t Padded(uint64_t columns) { return (columns + kProductColumns - 1) / kProductColumns * kProductColumns; }

void Convert(DType from, DType to, const std::byte* in, uint64_t n, std::byte* out) {
  if (from == to)
    std::copy_n(in, n * DTypeBytes(from), out);
  else
    ConvertFloats(from, to, in, out, n);
}

}  // namespace

std::vector<float> PaddedAxes(ByteSpan axes, uint64_t depth, uint64_t columns) {
  std::vector<float> out(depth * Padded(columns));
  for (uint64_t d = 0; d < depth; ++d)
    Convert(kAxesDType, DType::kF32, axes.data() + d * columns * DTypeBytes(kAxesDType), columns,
            reinterpret_cast<std::byte*>(out.data() + d * Padded(columns)));
  return out;
}

void ProjectRows(DType dtype, ByteSpan weight, std::span<const float> norm, std::span<const float> axes,
                 uint64_t columns, MutableByteSpan out) {
  const uint64_t width = DTypeBytes(dtype), depth = axes.size() / Padded(columns);
  const uint64_t rows = weight.size() / (depth * width);
  std::vector<float> a(kProjectedPanelRows * depth), product(kProjectedPanelRows * Padded(columns));
  for (uint64_t first = 0; first < rows; first += kProjectedPanelRows) {
    const uint64_t count = std::min(kProjectedPanelRows, rows - first);
    Convert(dtype, DType::kF32, weight.data() + first * depth * width, count * depth,
            reinterpret_cast<std::byte*>(a.data()));
    for (uint64_t i = 0; i < count && !norm.empty(); ++i) {
      for (uint64_t d = 0; d < depth; ++d) a[i * depth + d] *= norm[d];
    }
    CurrentOrderedProduct()(a.data(), count, depth, axes.data(), Padded(columns), product.data());
    for (uint64_t i = 0; i < count; ++i)
      Convert(DType::kF32, dtype, reinterpret_cast<const std::byte*>(product.data() + i * Padded(columns)), columns,
              out.data() + (first + i) * columns * width);
  }
}

ProjectedRows RowsOfBlock(const Frame& frame, uint32_t index) {
  const uint64_t columns = frame.projection->columns, begin = frame.BlockBegin(index);
  const uint64_t end = begin + frame.BlockElems(index);
  const uint64_t first = begin / columns;
  return {first, (end + columns - 1) / columns - first, begin - first * columns};
}

uint64_t ProjectedBytes(const Frame& frame) {
  const Projection& p = *frame.projection;
  const uint64_t width = DTypeBytes(frame.dtype);
  const uint64_t rows = std::min<uint64_t>(frame.block_elems / p.columns + 2, frame.elems / p.columns);
  const uint64_t panel = kProjectedPanelRows * (p.depth + Padded(p.columns)) * sizeof(float);
  const uint64_t axes = p.depth * (Padded(p.columns) * sizeof(float) + p.columns * DTypeBytes(kAxesDType));
  return rows * (p.depth + p.columns) * width + panel + axes + p.depth * (sizeof(float) + width);
}

}  // namespace modelstore
