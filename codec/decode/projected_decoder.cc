#include "codec/decode/projected_decoder.h"

#include <algorithm>

#include "codec/decode/block_decoder.h"
#include "codec/kernels/ordered_product.h"

namespace modelstore {
namespace {

uint64_t Padded(uint64_t columns) { return (columns + kProductColumns - 1) / kProductColumns * kProductColumns; }

}  // namespace

RowProjector::RowProjector(DType dtype, ByteSpan weight, std::span<const float> norm, uint64_t depth, uint64_t columns)
    : dtype_(dtype),
      depth_(depth),
      columns_(columns),
      padded_(Padded(columns)),
      rows_(weight.size() / DTypeBytes(dtype) / depth),
      weight_(rows_ * depth),
      sums_(rows_ * padded_) {
  ConvertElements(dtype, DType::kF32, weight, std::as_writable_bytes(std::span(weight_)));
  for (uint64_t i = 0; i < rows_ && !norm.empty(); ++i) {
    for (uint64_t d = 0; d < depth; ++d) weight_[i * depth + d] *= norm[d];
  }
}

void RowProjector::Add(ByteSpan axes) {
  const uint64_t row_bytes = columns_ * DTypeBytes(kAxesDType), count = axes.size() / row_bytes;
  axes_.assign(count * padded_, 0);
  for (uint64_t d = 0; d < count; ++d)
    ConvertElements(kAxesDType, DType::kF32, axes.subspan(d * row_bytes, row_bytes),
                    std::as_writable_bytes(std::span(axes_).subspan(d * padded_, columns_)));
  CurrentOrderedProduct()(weight_.data() + done_, depth_, rows_, count, axes_.data(), padded_, sums_.data());
  done_ += count;
}

void RowProjector::Finish(uint64_t skip, MutableByteSpan out) {
  const uint64_t width = DTypeBytes(dtype_);
  for (uint64_t i = skip / columns_; !out.empty() && i < rows_; ++i) {
    const uint64_t first = i == skip / columns_ ? skip % columns_ : 0;
    const uint64_t n = std::min(columns_ - first, out.size() / width);
    ConvertElements(DType::kF32, dtype_, std::as_bytes(std::span(sums_).subspan(i * padded_ + first, n)),
                    out.first(n * width));
    out = out.subspan(n * width);
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
  const uint64_t width = DTypeBytes(frame.dtype), panel = std::min(kAxesPanelRows, p.depth);
  const uint64_t rows = std::min<uint64_t>(frame.block_elems / p.columns + 2, frame.elems / p.columns);
  return rows * (p.depth * (sizeof(float) + width) + Padded(p.columns) * sizeof(float)) +
         panel * (p.columns * DTypeBytes(kAxesDType) + Padded(p.columns) * sizeof(float)) +
         p.depth * (sizeof(float) + width);
}

}  // namespace modelstore
