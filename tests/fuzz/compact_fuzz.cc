// A compact frame and what its pieces are made from, all hostile: a varint length, the frame, a byte that says whether
// tokens are kept within what stands for levels, then bytes that are repeated for every input and for the base.
// Rebuilds the first and the last block on every CPU target and by a GPU's kernels on the host, and checks that all
// agree and keep to the memory that they state.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "codec/decode/compact_decoder.h"
#include "codec/device/host_device.h"
#include "codec/kernels/cpu_target.h"
#include "codec/kernels/level_tokens.h"
#include "codec/kernels/value_map.h"

namespace modelstore {
namespace {

constexpr uint64_t kMaxBytes = 1 << 20;

// `content` over and over, from the `from`th byte on.
Bytes Fill(ByteSpan content, uint64_t from, uint64_t bytes) {
  Bytes out(bytes);
  for (uint64_t i = 0; i < bytes && !content.empty(); ++i) out[i] = content[(from + i) % content.size()];
  return out;
}

Bytes Tokens(ByteSpan content, CompactPiece::Range range, unsigned group, bool valid) {
  Bytes out = Fill(content, range.begin * 2, range.count * 2);
  for (uint64_t i = 0; valid && i < out.size(); i += 2) {
    uint16_t pattern;
    std::memcpy(&pattern, out.data() + i, 2);
    const uint32_t rank = SelfValue(pattern, false) % (group == 2 ? kPairTokens : kQuadTokens);
    pattern = FromSelfValue(static_cast<uint16_t>(rank), false);
    std::memcpy(out.data() + i, &pattern, 2);
  }
  return out;
}

void RebuildEverywhere(const Frame& frame, uint32_t block_index, const CompactPiece& piece, ByteSpan content,
                       bool valid) {
  const Bytes right = Tokens(content, piece.right, kFactorTokenLevels, valid);
  const Bytes left = Tokens(content, piece.left, kFactorTokenLevels, valid);
  const Bytes residual = Tokens(content, piece.residual, piece.segment->residual_token_levels(), valid);
  const Bytes scales = Fill(content, piece.scales.begin, piece.scales.count * 2);
  const Bytes steps = Fill(content, piece.steps.begin, piece.steps.count * 2);
  const CompactInputs inputs = {right, left, residual, scales, steps};
  const Bytes base = Fill(content, piece.block_begin + 1, piece.elems * DTypeBytes(frame.dtype));
  Bytes first;
  bool first_ok = false;
  for (const CpuTarget target : AvailableCpuTargets()) {
    ForceCpuTarget(target);
    CompactScratch scratch;
    Bytes out(base.size());
    const bool ok = RebuildPiece(frame, piece, inputs, base, scratch, out).ok();
    if (right.size() + left.size() + residual.size() + scales.size() + steps.size() + scratch.levels.capacity() +
            scratch.floats.capacity() * sizeof(float) >
        MaxPieceBytes(frame))
      std::abort();
    if (target == CpuTarget::kBaseline) {
      first_ok = ok;
      first = out;
    } else if (ok != first_ok || (ok && out != first)) {
      std::abort();
    }
  }
  // By a GPU's kernels: as a block of which this is all.
  HostBatch batch(16 << 20);
  BatchBuilder& builder = batch.builder();
  const BatchBuilder::Piece whole = {piece, inputs, {.bytes = base}};
  const auto block = builder.AddCompact(frame, block_index, std::span(&whole, 1));
  if (!block.ok()) {
    if (first_ok) std::abort();
    return;
  }
  if (!*block) std::abort();
  batch.Run();
  if (builder.Succeeded(**block, batch.output()) != first_ok) std::abort();
  const ByteSpan made = builder.BytesOf(**block, batch.output()).subspan(piece.block_begin * DTypeBytes(frame.dtype));
  if (first_ok && !std::ranges::equal(made.first(first.size()), first)) std::abort();
}

void Run(ByteSpan data) {
  ByteReader in(data);
  const ByteSpan frame_bytes = in.LengthPrefixed();
  const bool valid = (in.U8() & 1) != 0;
  const ByteSpan content = in.Take(in.remaining());
  const Result<Frame> frame = ParseFrame(frame_bytes);
  if (!frame.ok() || frame->encoding != Encoding::kCompact) return;
  const Bytes again = SerializeFrame(*frame);
  if (!std::equal(again.begin(), again.end(), frame_bytes.begin(), frame_bytes.end())) std::abort();
  if (frame->BlockCount() == 0 || MaxPieceBytes(*frame) > kMaxBytes ||
      uint64_t{frame->BlockElems(0)} * DTypeBytes(frame->dtype) > kMaxBytes)
    return;
  for (const uint32_t block : {uint32_t{0}, frame->BlockCount() - 1}) {
    uint64_t elems = 0;
    for (const CompactPiece& piece : CompactPieces(*frame, block)) {
      if (piece.block_begin != elems || piece.elems == 0) std::abort();
      elems += piece.elems;
      RebuildEverywhere(*frame, block, piece, content, valid);
    }
    if (elems != frame->BlockElems(block)) std::abort();
  }
}

}  // namespace
}  // namespace modelstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelstore::Run(std::as_bytes(std::span(data, size)));
  return 0;
}
