#include "gpu/engine/device_corpus.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "codec/encode/exact_encoder.h"
#include "codec/kernels/convert.h"
#include "codec/kernels/level_tokens.h"
#include "codec/kernels/value_map.h"

namespace modelstore {
namespace {

constexpr DType kDTypes[] = {DType::kBF16, DType::kF16, DType::kF32, DType::kF64, DType::kF8E4M3, DType::kF8E5M2};

// A number of [-1, 1), roughly normal: the same on every machine, which the library's distributions are not.
double Noise(std::mt19937_64& rng) {
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>(rng() >> 11) * 0x1p-53;
  return sum / 2 - 1;
}

void Put(Bytes& out, size_t index, DType dtype, double value) {
  const uint64_t pattern = NarrowFromF64(dtype, std::bit_cast<uint64_t>(value));
  std::memcpy(out.data() + index * DTypeBytes(dtype), &pattern, DTypeBytes(dtype));
}

Bytes Weights(DType dtype, size_t elems, double size, std::mt19937_64& rng) {
  Bytes out(elems * DTypeBytes(dtype));
  for (size_t i = 0; i < elems; ++i) Put(out, i, dtype, size * Noise(rng));
  return out;
}

// `base` with changes of about `size`.
Bytes Changed(DType dtype, const Bytes& base, double size, std::mt19937_64& rng) {
  Bytes out(base.size());
  for (size_t i = 0; i < base.size() / DTypeBytes(dtype); ++i) {
    uint64_t pattern = 0;
    std::memcpy(&pattern, base.data() + i * DTypeBytes(dtype), DTypeBytes(dtype));
    Put(out, i, dtype, std::bit_cast<double>(WidenToF64(dtype, pattern)) + size * Noise(rng));
  }
  return out;
}

void StrewSpecials(DType dtype, Bytes& values, std::mt19937_64& rng) {
  const uint32_t width = DTypeBytes(dtype);
  const uint64_t sign = uint64_t{1} << (8 * width - 1);
  for (const uint64_t pattern : {uint64_t{0}, sign, uint64_t{1}, sign | 1, sign - 1, ~uint64_t{0}}) {
    for (int i = 0; i < 20; ++i) std::memcpy(values.data() + rng() % (values.size() / width) * width, &pattern, width);
  }
}

// Codes `source`, against `base` when there is one; a block for each of its blocks that has streams.
void Encode(const std::string& name, DType dtype, const Bytes& source, DType base_dtype, const Bytes& base,
            std::vector<CorpusBlock>* out) {
  const uint32_t width = DTypeBytes(dtype);
  const uint64_t elems = source.size() / width;
  const auto sample = [&](const Bytes& all, uint32_t of_width) {
    Bytes sampled;
    for (uint64_t w = 0; !all.empty() && w < SampleWindowCount(elems); ++w) {
      const ByteSpan part =
          ByteSpan(all).subspan(SampleWindowBegin(elems, w) * of_width, SampleWindowElems(elems, w) * of_width);
      sampled.insert(sampled.end(), part.begin(), part.end());
    }
    return sampled;
  };
  const EncodePlan plan = PlanTensor(dtype, elems, sample(source, width), base_dtype,
                                     sample(base, base.empty() ? 1 : DTypeBytes(base_dtype)));
  const uint32_t coded_width = DTypeBytes(plan.coded_dtype);
  Bytes prediction;
  if (plan.encoding == Encoding::kDelta) {
    prediction.resize(elems * coded_width);
    ConvertElements(base_dtype, plan.coded_dtype, base, prediction);
  }
  const auto part = [](const Bytes& all, const Frame& frame, uint32_t i, uint32_t of_width) {
    return all.empty() ? ByteSpan()
                       : ByteSpan(all).subspan(frame.BlockBegin(i) * of_width, frame.BlockElems(i) * of_width);
  };
  FrameBuilder builder(plan);
  for (uint32_t i = 0; i < builder.frame().BlockCount(); ++i)
    builder.AddBlock(i, part(source, builder.frame(), i, width), part(prediction, builder.frame(), i, coded_width));
  if (!builder.plan_holds()) return;
  const Result<BlockEncoder> encoder = std::move(builder).Finish();
  if (!encoder.ok()) return;
  const Frame frame = *ParseFrame(SerializeFrame(encoder->frame()));
  if (frame.encoding != Encoding::kSelf && frame.encoding != Encoding::kDelta) return;
  for (uint32_t i = 0; i < frame.BlockCount(); ++i) {
    CorpusBlock block;
    block.codec = frame.encoding == Encoding::kDelta ? "delta" : "self";
    block.name = block.codec + " " + std::string(DTypeName(dtype)) + ", " + name;
    block.frame = frame;
    block.index = i;
    const ByteSpan predicted = part(prediction, frame, i, coded_width);
    block.prediction.assign(predicted.begin(), predicted.end());
    const ByteSpan expected = part(source, frame, i, width);
    block.expected.assign(expected.begin(), expected.end());
    if (!encoder->Encode(i, expected, predicted, &block.coded).ok() || block.coded.size() >= expected.size()) continue;
    out->push_back(std::move(block));
  }
}

void AppendTokens(std::vector<int8_t> levels, unsigned group, std::vector<uint16_t>& out) {
  levels.resize((levels.size() + group - 1) / group * group);
  const size_t at = out.size();
  out.resize(at + levels.size() / group);
  if (!levels.empty()) LevelsToTokens(levels.data(), levels.size() / group, group, out.data() + at);
}

std::vector<int8_t> Levels(uint64_t n, int max, double size, std::mt19937_64& rng) {
  std::vector<int8_t> levels(n);
  for (int8_t& level : levels)
    level = static_cast<int8_t>(std::clamp(static_cast<int>(std::lround(size * Noise(rng))), -max, max));
  return levels;
}

uint16_t Bf16(double value) {
  return static_cast<uint16_t>(NarrowFromF64(DType::kBF16, std::bit_cast<uint64_t>(value)));
}

CompactSegment Segment(uint64_t rows, uint64_t columns, uint32_t rank, bool has_residual, uint64_t group_elems) {
  CompactSegment s;
  s.rows = rows;
  s.columns = columns;
  s.rank = rank;
  s.has_residual = has_residual;
  s.group_elems = group_elems;
  if (has_residual) s.biases = {11, 5, 2};
  return s;
}

void Rebuild(const std::string& name, DType dtype, std::vector<CompactSegment> segments, uint32_t block_elems,
             std::mt19937_64& rng, std::vector<CorpusBlock>* out, const Bytes* base = nullptr) {
  CorpusBlock all;
  auto tensors = std::make_shared<CorpusBlock::Compact>();
  all.codec = "compact";
  all.name = "compact " + std::string(DTypeName(dtype)) + ", " + name;
  CompactFrame compact;
  compact.seed = static_cast<uint32_t>(rng());
  uint64_t elems = 0;
  for (const CompactSegment& s : segments) {
    elems += s.elems();
    AppendTokens(Levels(s.rank * s.columns, kMaxPairLevel, 6, rng), kFactorTokenLevels, tensors->factors);
    AppendTokens(Levels(s.factor_rows() * s.rank, kMaxPairLevel, 90, rng), kFactorTokenLevels, tensors->factors);
    if (s.has_residual)
      AppendTokens(Levels(s.elems(), s.wide_residual ? kMaxPairLevel : kMaxQuadLevel, 3, rng),
                   s.residual_token_levels(), tensors->residual);
    for (uint32_t k = 0; k < s.rank; ++k) tensors->scales.push_back(Bf16(1e-5 * Noise(rng)));
    for (uint64_t g = 0; g < s.groups(); ++g) tensors->scales.push_back(Bf16(1e-3 * Noise(rng)));
  }
  compact.segments = std::move(segments);
  if (!compact.FinishLayout(elems).ok()) return;
  all.frame.encoding = Encoding::kCompact;
  all.frame.dtype = all.frame.coded_dtype = dtype;
  all.frame.elems = elems;
  all.frame.block_elems = block_elems;
  all.frame.compact = std::make_shared<const CompactFrame>(std::move(compact));
  if (base != nullptr) {
    tensors->base = *base;
  } else {
    tensors->base = Weights(dtype, elems, 0.1, rng);
    StrewSpecials(dtype, tensors->base, rng);
  }
  all.compact = std::move(tensors);
  for (uint32_t i = 0; i < all.frame.BlockCount(); ++i) {
    CorpusBlock block = all;
    block.index = i;
    block.expected.resize(BlockBytes(block.frame, i));
    block.is_good = DecodeOnCpu(block, block.expected).ok();
    out->push_back(std::move(block));
  }
}

ByteSpan RangeOf(const std::vector<uint16_t>& all, const CompactPiece::Range& range) {
  return std::as_bytes(std::span(all).subspan(range.begin, range.count));
}

std::vector<BatchBuilder::Piece> PiecesOf(const CorpusBlock& block) {
  const uint32_t width = DTypeBytes(block.frame.dtype);
  std::vector<BatchBuilder::Piece> pieces;
  for (const CompactPiece& piece : CompactPieces(block.frame, block.index)) {
    const CompactInputs inputs = {
        RangeOf(block.compact->factors, piece.right), RangeOf(block.compact->factors, piece.left),
        RangeOf(block.compact->residual, piece.residual), RangeOf(block.compact->scales, piece.scales),
        RangeOf(block.compact->scales, piece.steps)};
    const uint64_t at = piece.segment->first_elem + piece.begin;
    pieces.push_back(
        {piece, inputs, {.bytes = ByteSpan(block.compact->base).subspan(at * width, piece.elems * width)}});
  }
  return pieces;
}

// A base, a delta against it, one against that, and a compact one against the base: all decoded where the last is.
void AddChain(std::mt19937_64& rng, std::vector<CorpusBlock>* blocks) {
  constexpr size_t kElems = 65536;
  const Bytes base = Weights(DType::kBF16, kElems, 0.1, rng), first = Changed(DType::kBF16, base, 0.001, rng);
  std::vector<CorpusBlock> chain;
  Encode("a chain's base", DType::kBF16, base, DType::kOpaque, {}, &chain);
  Encode("a chain's first", DType::kBF16, first, DType::kBF16, base, &chain);
  Encode("a chain's second", DType::kBF16, Changed(DType::kBF16, first, 0.001, rng), DType::kBF16, first, &chain);
  if (chain.size() != 3) return;
  for (size_t i = 1; i < 3; ++i) chain[i].predicted_by = std::make_shared<CorpusBlock>(chain[i - 1]);
  blocks->push_back(chain[1]);
  blocks->push_back(chain[2]);
  std::vector<CorpusBlock> compact;
  Rebuild("against a block of the batch", DType::kBF16, {Segment(64, 1024, 8, true, 0)}, kElems, rng, &compact, &base);
  compact.front().predicted_by = std::make_shared<CorpusBlock>(chain[0]);
  blocks->push_back(compact.front());
}

}  // namespace

Result<std::optional<BatchBuilder::Block>> CorpusBlock::AddTo(BatchBuilder& builder, bool is_wanted) const {
  BatchBuilder::Prediction of = {.bytes = prediction};
  if (predicted_by != nullptr) {
    ASSIGN_OR_RETURN(of.block, predicted_by->AddTo(builder, /*is_wanted=*/false));
    if (!of.block) return std::optional<BatchBuilder::Block>();
  }
  if (frame.encoding != Encoding::kCompact) return builder.AddBlock(frame, index, coded, of, is_wanted);
  std::vector<BatchBuilder::Piece> pieces = PiecesOf(*this);
  if (of.block) pieces.front().prediction = of;
  return builder.AddCompact(frame, index, pieces);
}

Status DecodeOnCpu(const CorpusBlock& block, MutableByteSpan out) {
  if (block.frame.encoding != Encoding::kCompact)
    return DecodeBlock(block.frame, block.index, block.coded, block.prediction, out);
  const uint32_t width = DTypeBytes(block.frame.dtype);
  CompactScratch scratch;
  for (const BatchBuilder::Piece& piece : PiecesOf(block))
    RETURN_IF_ERROR(RebuildPiece(block.frame, piece.piece, piece.inputs, piece.prediction.bytes, scratch,
                                 out.subspan(piece.piece.block_begin * width, piece.piece.elems * width)));
  return OkStatus();
}

std::vector<CorpusBlock> AwkwardBlocks() {
  std::mt19937_64 rng(20260101);
  std::vector<CorpusBlock> blocks;
  for (const DType dtype : kDTypes) {
    for (const size_t elems : {size_t{777}, size_t{8191}, size_t{8193}, size_t{140'001}}) {
      const std::string size = std::to_string(elems) + " elements";
      Bytes base = Weights(dtype, elems, 0.1, rng), tuned = Changed(dtype, base, 0.001, rng);
      Encode(size, dtype, base, DType::kOpaque, {}, &blocks);
      Encode(size, dtype, tuned, dtype, base, &blocks);
      if (elems < 8193) continue;
      StrewSpecials(dtype, base, rng);
      StrewSpecials(dtype, tuned, rng);
      Encode(size + " with special values", dtype, base, DType::kOpaque, {}, &blocks);
      Encode(size + " with special values", dtype, tuned, dtype, base, &blocks);
    }
    std::vector<CompactSegment> odd = {Segment(3, 5, 2, false, 0), Segment(17, 33, 7, true, 10),
                                       Segment(1, 1, 0, false, 0), Segment(40, 513, 4, true, 0),
                                       Segment(9, 1030, 0, true, 1000)};
    odd[3].wide_residual = true;
    odd[1].nearest = true;
    odd[3].row_mask = {0x5a5a5a5a5aull};
    Rebuild("odd shapes", dtype, odd, 1000, rng, &blocks);
    Rebuild("even shapes", dtype, {Segment(64, 256, 8, true, 0), Segment(60, 128, 3, true, 64)}, 4096, rng, &blocks);
  }
  // BF16 saved as F32.
  const Bytes narrow = Weights(DType::kBF16, 50'000, 0.1, rng), tuned = Changed(DType::kBF16, narrow, 0.001, rng);
  Bytes wide(narrow.size() * 2);
  ConvertElements(DType::kBF16, DType::kF32, tuned, wide);
  Encode("of BF16's values", DType::kF32, wide, DType::kBF16, narrow, &blocks);
  Encode("of BF16's values", DType::kF32, wide, DType::kOpaque, {}, &blocks);
  AddChain(rng, &blocks);
  // Damaged ones: cut short, longer, bits flipped, noise; tokens that stand for nothing.
  const size_t good = blocks.size();
  for (size_t i = 0; i < good; i += 3) {
    if (blocks[i].compact != nullptr) {
      CorpusBlock bad = blocks[i];
      bad.name += ", damaged";
      auto tensors = std::make_shared<CorpusBlock::Compact>(*bad.compact);
      std::vector<uint16_t>& tokens = i % 2 == 0 ? tensors->factors : tensors->residual;
      tokens[rng() % tokens.size()] = FromSelfValue(uint16_t{0xffff}, false);
      bad.compact = std::move(tensors);
      bad.frame.compact = std::make_shared<const CompactFrame>(*bad.frame.compact);  // of another tensor
      bad.is_good = DecodeOnCpu(bad, bad.expected).ok();
      blocks.push_back(std::move(bad));
      continue;
    }
    for (int how = 0; how < 4; ++how) {
      CorpusBlock bad = blocks[i];
      bad.name += ", damaged";
      Bytes& coded = bad.coded;
      if (how == 0) coded.resize(coded.size() * 2 / 3);
      if (how == 1) coded.resize(std::min(coded.size() + 6, bad.expected.size() - 1));
      if (how == 2) coded[rng() % coded.size()] ^= static_cast<std::byte>(1 << rng() % 8);
      if (how == 3) std::ranges::generate(coded, [&] { return static_cast<std::byte>(rng()); });
      bad.is_good = DecodeOnCpu(bad, bad.expected).ok();
      blocks.push_back(std::move(bad));
    }
  }
  return blocks;
}

std::vector<CorpusBlock> OrdinaryBlocks(const std::string& codec, uint64_t bytes, uint32_t rank) {
  std::mt19937_64 rng(7);
  std::vector<CorpusBlock> blocks;
  // One MB, again and again: making more takes long, and how long decoding takes does not depend on it.
  const uint64_t elems = std::min<uint64_t>(bytes, 1 << 20) / 2;
  if (codec == "compact") {
    Rebuild("ordinary", DType::kBF16, {Segment(elems / 1024, 1024, rank, true, 0)}, kBlockBytes / 2, rng, &blocks);
  } else {
    const Bytes base = Weights(DType::kBF16, elems, 0.1, rng);
    if (codec == "delta")
      Encode("ordinary", DType::kBF16, Changed(DType::kBF16, base, 0.0005, rng), DType::kBF16, base, &blocks);
    else
      Encode("ordinary", DType::kBF16, base, DType::kOpaque, {}, &blocks);
  }
  uint64_t made = 0;
  for (const CorpusBlock& block : blocks) made += block.expected.size();
  for (size_t i = 0; made > 0 && made < bytes; ++i) {
    blocks.push_back(blocks[i]);
    made += blocks.back().expected.size();
  }
  return blocks;
}

}  // namespace modelstore
