#include "catalog/read/batch_reader.h"

#include <deque>
#include <optional>

#include "codec/decode/block_decoder.h"
#include "codec/decode/compact_decoder.h"

namespace modelstore {
namespace {

// Factors and scales of a block, which are read before the batch is made.
constexpr uint64_t kMaxInputBytes = 4 << 20;

}  // namespace

Result<bool> BatchReader::Add(const TensorRef& tensor, uint32_t index) {
  const Encoding encoding = tensor->frame.encoding;
  std::optional<BatchBuilder::Block> block;
  if (encoding == Encoding::kCompact) {
    ASSIGN_OR_RETURN(block, AddCompact(*tensor, index));
  } else if (encoding == Encoding::kSelf || encoding == Encoding::kDelta) {
    ASSIGN_OR_RETURN(block, AddCoded(*tensor, index));
  }
  if (block) added_.push_back({tensor, index, *block});
  return block.has_value();
}

Result<std::optional<BatchBuilder::Block>> BatchReader::AddCoded(const OpenTensor& tensor, uint32_t index) {
  const Frame& frame = tensor.frame;
  ASSIGN_OR_RETURN(const StoredValue stored, blocks_.LoadStored(tensor, index));
  ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(stored.bytes()));
  if (coded.size() >= BlockBytes(frame, index)) return std::optional<BatchBuilder::Block>();
  std::optional<Predicted> predicted = Predicted{};
  if (frame.encoding == Encoding::kDelta) {
    ASSIGN_OR_RETURN(predicted, Predict(tensor.record.ViewOf(InputRole::kBase), frame.coded_dtype,
                                        frame.BlockBegin(index), frame.BlockElems(index)));
  }
  if (!predicted) return std::optional<BatchBuilder::Block>();
  return builder_.AddBlock(frame, index, coded, predicted->prediction, /*is_wanted=*/true);
}

Result<std::optional<BatchReader::Predicted>> BatchReader::Predict(const View& view, DType dtype, uint64_t begin,
                                                                   uint64_t elems) {
  const std::optional<Predicted> none;
  ASSIGN_OR_RETURN(const std::optional<ViewReader::BlockPart> part, views_.InOneBlock(view, dtype, begin, elems));
  if (!part) return none;
  const OpenTensor& base = *part->base;
  const Frame& frame = base.frame;
  const uint32_t index = part->index;
  Predicted predicted;
  std::optional<BatchBuilder::Block> block;
  if (const auto known = bases_.find({base.id, index}); known != bases_.end()) {
    block = known->second;
  } else if (BlockPtr held = cache_.Find(GeometryOf(base).Id(index), BlockCache::Use::kPredict)) {
    if (held->bytes().size() != BlockBytes(frame, index)) return none;
    predicted.prediction.bytes = held->bytes().subspan(part->offset_bytes, elems * DTypeBytes(dtype));
    predicted.holder = std::move(held);
    return std::optional(std::move(predicted));
  } else if (frame.encoding == Encoding::kSelf) {
    ASSIGN_OR_RETURN(const StoredValue stored, blocks_.LoadStored(base, index));
    ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(stored.bytes()));
    if (coded.size() >= BlockBytes(frame, index)) return none;
    ASSIGN_OR_RETURN(block, builder_.AddBlock(frame, index, coded, {}, /*is_wanted=*/false));
    if (block) bases_.emplace(std::pair(base.id, index), *block);
  }
  if (!block) return none;
  predicted.prediction.block = block;
  predicted.prediction.offset_bytes = part->offset_bytes;
  return std::optional(std::move(predicted));
}

Result<std::optional<BatchBuilder::Block>> BatchReader::AddCompact(const OpenTensor& tensor, uint32_t index) {
  const TensorRecord& record = tensor.record;
  const std::optional<BatchBuilder::Block> none;
  const std::vector<CompactPiece> parts = CompactPieces(tensor.frame, index);
  uint64_t input_bytes = 0;
  for (const CompactPiece& part : parts)
    input_bytes += (part.right.count + part.left.count + part.scales.count + part.steps.count) * sizeof(uint16_t);
  if (input_bytes > kMaxInputBytes) return none;
  std::vector<BatchBuilder::Piece> pieces;
  std::deque<Predicted> predictions;
  std::deque<Bytes> inputs;
  const auto read = [&](const View& view, DType dtype, CompactPiece::Range range, ByteSpan* out) -> Status {
    Bytes& bytes = inputs.emplace_back(range.count * DTypeBytes(dtype));
    *out = bytes;
    return bytes.empty() ? OkStatus() : blocks_.Assemble(view, dtype, range.begin, bytes, /*wait=*/false);
  };
  for (const CompactPiece& part : parts) {
    BatchBuilder::Piece& made = pieces.emplace_back(BatchBuilder::Piece{part, {}});
    ASSIGN_OR_RETURN(std::optional<Predicted> predicted, Predict(record.ViewOf(InputRole::kBase), tensor.frame.dtype,
                                                                 part.segment->first_elem + part.begin, part.elems));
    if (!predicted) return none;
    made.prediction = predicted->prediction;
    predictions.push_back(*std::move(predicted));
    if (part.residual.count != 0) {
      // Most of what a compact tensor takes: on the device, too.
      ASSIGN_OR_RETURN(std::optional<Predicted> tokens, Predict(record.ViewOf(InputRole::kResidual), DType::kU16,
                                                                part.residual.begin, part.residual.count));
      if (!tokens) return none;
      made.residual = tokens->prediction;
      if (!made.residual.block) made.inputs.residual = made.residual.bytes;
      predictions.push_back(*std::move(tokens));
    }
    RETURN_IF_ERROR(read(record.ViewOf(InputRole::kFactors), DType::kU16, part.right, &made.inputs.right));
    RETURN_IF_ERROR(read(record.ViewOf(InputRole::kFactors), DType::kU16, part.left, &made.inputs.left));
    RETURN_IF_ERROR(read(record.ViewOf(InputRole::kScales), DType::kBF16, part.scales, &made.inputs.scales));
    RETURN_IF_ERROR(read(record.ViewOf(InputRole::kScales), DType::kBF16, part.steps, &made.inputs.steps));
  }
  return builder_.AddCompact(tensor.frame, index, pieces);
}

}  // namespace modelstore
