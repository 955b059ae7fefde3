// The encoding projected: docs/format.md, "Projected tensors".
#include <algorithm>
#include <limits>
#include <string>

#include "codec/decode/block_decoder.h"
#include "codec/decode/encoding_rows.h"
#include "codec/decode/projected_decoder.h"

namespace modelstore {
namespace {

Status Parse(ByteReader& in, Frame& frame) {
  Projection projection;
  projection.columns = in.Varint();
  projection.depth = in.Varint();
  const uint8_t flags = in.U8();
  if (!in.ok() || !in.AtEnd()) return Corruption("frame: a projection cut short, or bytes after its end");
  if (flags > 1) return Unsupported("frame: a projection with flags " + std::to_string(flags));
  projection.has_norm = flags != 0;
  const DType dtype = frame.dtype;
  if (!IsProjectable(dtype)) return Corruption("frame: a projected tensor of dtype " + std::string(DTypeName(dtype)));
  const uint64_t columns = projection.columns, depth = projection.depth;
  if (columns == 0 || depth == 0 || columns > kMaxAxesElems || depth > kMaxAxesElems / columns ||
      frame.elems % columns != 0 || frame.elems == 0 ||
      frame.elems / columns > std::numeric_limits<uint64_t>::max() / 16 / depth)
    return Corruption("frame: " + std::to_string(frame.elems) + " elements projected from " + std::to_string(depth) +
                      " to " + std::to_string(columns));
  frame.projection = projection;
  return OkStatus();
}

void Serialize(const Frame& frame, ByteWriter& out) {
  out.Varint(frame.projection->columns);
  out.Varint(frame.projection->depth);
  out.U8(frame.projection->has_norm ? 1 : 0);
}

// A panel of the axes' rows after the other.
Status Rebuild(const Frame& frame, uint32_t index, InputReader& inputs, MutableByteSpan out) {
  const Projection& p = *frame.projection;
  Bytes bytes;
  const auto read = [&](InputRole role, DType dtype, uint64_t begin, uint64_t elems) {
    bytes.resize(elems * DTypeBytes(dtype));
    return inputs.Read(role, dtype, begin, bytes);
  };
  std::vector<float> norm(p.has_norm ? p.depth : 0);
  RETURN_IF_ERROR(read(InputRole::kNorm, frame.dtype, 0, norm.size()));
  ConvertElements(frame.dtype, DType::kF32, bytes, std::as_writable_bytes(std::span(norm)));
  const ProjectedRows rows = RowsOfBlock(frame, index);
  RETURN_IF_ERROR(read(InputRole::kWeight, frame.dtype, rows.first * p.depth, rows.count * p.depth));
  RowProjector projector(frame.dtype, bytes, norm, p.depth, p.columns);
  for (uint64_t d = 0; d < p.depth; d += kAxesPanelRows) {
    const uint64_t count = std::min(kAxesPanelRows, p.depth - d);
    RETURN_IF_ERROR(read(InputRole::kAxes, kAxesDType, d * p.columns, count * p.columns));
    projector.Add(bytes);
  }
  projector.Finish(rows.skip_elems, out);
  return OkStatus();
}

std::vector<InputNeed> Inputs(const Frame& frame) {
  const Projection& p = *frame.projection;
  return {{.role = InputRole::kWeight, .elems = frame.elems / p.columns * p.depth, .dtype = frame.dtype},
          {.role = InputRole::kAxes, .elems = p.columns * p.depth, .dtype = kAxesDType},
          {.role = InputRole::kNorm, .elems = p.has_norm ? p.depth : 0, .dtype = frame.dtype}};
}

uint64_t PeakBytes(const Frame& frame, const BlockNeed& own, std::span<const SeenNeed> seen) {
  uint64_t peak = 0;
  for (const SeenNeed& input : seen) peak = std::max(peak, input.peak + input.block);
  return own.block + ProjectedBytes(frame) + peak;
}

}  // namespace

const EncodingRow kProjectedRow = {.encoding = Encoding::kProjected,
                                   .parse = Parse,
                                   .serialize = Serialize,
                                   .decode = nullptr,
                                   .rebuild = Rebuild,
                                   .inputs = Inputs,
                                   .peak_bytes = PeakBytes};

}  // namespace modelstore
