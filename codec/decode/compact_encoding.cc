// The encoding compact: docs/format.md, "Compact tensors".
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "codec/decode/block_decoder.h"
#include "codec/decode/compact_decoder.h"
#include "codec/decode/encoding_rows.h"

namespace modelstore {
namespace {

Status Parse(ByteReader& in, Frame& frame) {
  if (!DTypeIsFloat(frame.dtype))
    return Corruption("frame: a compact tensor of dtype " + std::string(DTypeName(frame.dtype)));
  ASSIGN_OR_RETURN(CompactFrame compact, ParseCompact(in, frame.elems));
  if (!in.AtEnd()) return Corruption("frame: bytes after its end");
  frame.compact = std::make_shared<const CompactFrame>(std::move(compact));
  return OkStatus();
}

void Serialize(const Frame& frame, ByteWriter& out) { SerializeCompact(*frame.compact, out); }

// Piece by piece. What a piece needs of the other tensors is copied, but for its prediction: their blocks stay where
// they are, because the pieces of several blocks are in one of theirs.
Status Rebuild(const Frame& frame, uint32_t index, InputReader& inputs, MutableByteSpan out) {
  struct Part {
    InputRole role;
    DType dtype;
    CompactPiece::Range range;
    ByteSpan CompactInputs::*span;
  };
  const size_t width = DTypeBytes(frame.dtype);
  CompactScratch scratch;
  std::unique_ptr<std::byte[]> buffer;
  uint64_t buffer_bytes = 0;
  for (const CompactPiece& piece : CompactPieces(frame, index)) {
    ASSIGN_OR_RETURN(const ByteSpan prediction, inputs.Borrow(InputRole::kBase, frame.dtype,
                                                              piece.segment->first_elem + piece.begin, piece.elems));
    const Part parts[] = {{InputRole::kFactors, DType::kU16, piece.right, &CompactInputs::right},
                          {InputRole::kFactors, DType::kU16, piece.left, &CompactInputs::left},
                          {InputRole::kResidual, DType::kU16, piece.residual, &CompactInputs::residual},
                          {InputRole::kScales, DType::kBF16, piece.scales, &CompactInputs::scales},
                          {InputRole::kScales, DType::kBF16, piece.steps, &CompactInputs::steps}};
    uint64_t bytes = 0;
    for (const Part& part : parts) bytes += part.range.count * DTypeBytes(part.dtype);
    if (bytes > buffer_bytes) {
      buffer = nullptr;  // never both
      buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
      buffer_bytes = bytes;
    }
    MutableByteSpan rest(buffer.get(), bytes);
    CompactInputs spans;
    for (const Part& part : parts) {
      const MutableByteSpan into = rest.first(part.range.count * DTypeBytes(part.dtype));
      rest = rest.subspan(into.size());
      RETURN_IF_ERROR(inputs.Read(part.role, part.dtype, part.range.begin, into));
      spans.*part.span = into;
    }
    RETURN_IF_ERROR(RebuildPiece(frame, piece, spans, prediction, scratch,
                                 out.subspan(piece.block_begin * width, piece.elems * width)));
  }
  return OkStatus();
}

std::vector<InputNeed> Inputs(const Frame& frame) {
  const CompactFrame& compact = *frame.compact;
  return {{.role = InputRole::kBase, .elems = frame.elems, .dtype = frame.coded_dtype, .is_converted = true},
          {.role = InputRole::kFactors, .elems = compact.factor_tokens, .dtype = DType::kU16},
          {.role = InputRole::kResidual, .elems = compact.residual_tokens, .dtype = DType::kU16},
          {.role = InputRole::kScales, .elems = compact.scales, .dtype = DType::kBF16}};
}

// While each of the other tensors' blocks is decoded, the block is held, its prediction (or the base's block that it is
// a part of), and the inputs of one piece.
uint64_t PeakBytes(const Frame& frame, const BlockNeed& own, std::span<const SeenNeed> seen) {
  uint64_t prediction = own.prediction, peak = 0;
  for (const SeenNeed& input : seen) {
    prediction = std::max(prediction, input.block);
    peak = std::max(peak, input.peak);
  }
  return own.block + prediction + MaxPieceBytes(frame) + peak;
}

}  // namespace

const EncodingRow kCompactRow = {.encoding = Encoding::kCompact,
                                 .parse = Parse,
                                 .serialize = Serialize,
                                 .decode = nullptr,
                                 .rebuild = Rebuild,
                                 .inputs = Inputs,
                                 .peak_bytes = PeakBytes};

}  // namespace modelstore
