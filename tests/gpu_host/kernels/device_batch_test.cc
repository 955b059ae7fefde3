// The kernels for GPUs against the CPU's decoders, byte for byte.
#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "codec/device/host_device.h"
#include "codec/encode/exact_encoder.h"
#include "codec/kernels/value_map.h"
#include "tests/unit/codec/compact_fixture.h"

namespace modelstore::test {
namespace {

using Block = BatchBuilder::Block;

bool HasStreams(const CodedTensor& coded, uint32_t block) {
  return (coded.frame.encoding == Encoding::kSelf || coded.frame.encoding == Encoding::kDelta) &&
         coded.blocks[block].size() < BlockBytes(coded.frame, block);
}

ByteSpan PredictionOf(const CodedTensor& coded, uint32_t block) {
  return BlockPart(coded.prediction, coded.frame, block, DTypeBytes(coded.frame.coded_dtype));
}

// Adds every block that has streams; all of them fit.
std::vector<std::pair<uint32_t, Block>> AddAll(const CodedTensor& coded, BatchBuilder& builder) {
  std::vector<std::pair<uint32_t, Block>> added;
  for (uint32_t i = 0; i < coded.blocks.size(); ++i) {
    if (!HasStreams(coded, i)) continue;
    const auto block = builder.AddBlock(coded.frame, i, coded.blocks[i], {.bytes = PredictionOf(coded, i)}, true);
    EXPECT_TRUE(block.ok()) << block.status().ToString();
    EXPECT_TRUE(block->has_value());
    added.emplace_back(i, **block);
  }
  return added;
}

void ExpectSource(const CodedTensor& coded, ByteSpan source) {
  HostBatch batch(64 << 20);
  const auto added = AddAll(coded, batch.builder());
  batch.Run();
  for (const auto& [index, block] : added) {
    EXPECT_TRUE(batch.builder().Succeeded(block, batch.output())) << index;
    EXPECT_TRUE(std::ranges::equal(batch.builder().BytesOf(block, batch.output()),
                                   BlockPart(source, coded.frame, index, DTypeBytes(coded.frame.dtype))))
        << index;
  }
}

class EveryFloatDevice : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Device, EveryFloatDevice, testing::ValuesIn(kFloats),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

TEST_P(EveryFloatDevice, ExactBlocks) {
  // Around every boundary of the format: lanes, chunks, one and two streams, blocks.
  for (const size_t elems : {1000u, 4097u, 8191u, 8192u, 8193u, 8224u, 131073u, 300001u}) {
    SCOPED_TRACE(elems);
    const Bytes base = NormalTensor(GetParam(), elems, 0.5, 7);
    ExpectSource(EncodeTensor(GetParam(), base), base);
    const Bytes source = Perturbed(GetParam(), base, 0.002, 8);
    ExpectSource(EncodeTensor(GetParam(), source, GetParam(), base), source);
  }
}

// Any bytes at all among ordinary ones: NaN payloads, infinities, both zeros, subnormals, long values.
TEST_P(EveryFloatDevice, AwkwardPatterns) {
  const uint32_t width = DTypeBytes(GetParam());
  const Bytes base = NormalTensor(GetParam(), 50000, 0.02, 5);
  Bytes source = base;
  std::mt19937 rng(6);
  const uint64_t sign = uint64_t{1} << (8 * width - 1);
  for (const uint64_t pattern : {uint64_t{0}, sign, uint64_t{1}, sign | 1, sign - 1, ~uint64_t{0}, uint64_t{rng()}})
    for (int i = 0; i < 40; ++i) std::memcpy(source.data() + rng() % 50000 * width, &pattern, width);
  ExpectSource(EncodeTensor(GetParam(), source), source);
  ExpectSource(EncodeTensor(GetParam(), source, GetParam(), base), source);
}

// Whatever a block says, both decoders say the same of it, and give the same bytes.
TEST_P(EveryFloatDevice, HostileBlocks) {
  std::mt19937_64 rng(11);
  const Bytes base = NormalTensor(GetParam(), 9000, 0.5, 1);
  const Bytes source = Perturbed(GetParam(), base, 0.01, 2);
  size_t failed = 0;
  for (const CodedTensor& good :
       {EncodeTensor(GetParam(), source), EncodeTensor(GetParam(), source, GetParam(), base)}) {
    for (int round = 0; round < 150; ++round) {
      CodedTensor bad = good;
      Bytes& block = bad.blocks[0];
      switch (rng() % 4) {
        case 0:
          block.resize(rng() % block.size());
          break;
        case 1:
          block.resize(std::min<size_t>(block.size() + 1 + rng() % 40, BlockBytes(bad.frame, 0) - 1));
          break;
        case 2:
          for (std::byte& b : block) b = static_cast<std::byte>(rng());
          break;
        default:
          for (int i = 0; i < 3; ++i) block[rng() % block.size()] ^= static_cast<std::byte>(1 << rng() % 8);
      }
      Bytes expected(BlockBytes(bad.frame, 0));
      const bool ok = DecodeBlock(bad.frame, 0, block, PredictionOf(bad, 0), expected).ok();
      HostBatch batch(1 << 20);
      const auto added = batch.builder().AddBlock(bad.frame, 0, block, {.bytes = PredictionOf(bad, 0)}, true);
      failed += ok ? 0 : 1;
      if (!added.ok()) {
        EXPECT_EQ(added.status().code(), StatusCode::kCorruption);
        EXPECT_FALSE(ok);
        continue;
      }
      ASSERT_TRUE(added->has_value());
      batch.Run();
      ASSERT_EQ(batch.builder().Succeeded(**added, batch.output()), ok);
      if (ok) {
        EXPECT_TRUE(std::ranges::equal(batch.builder().BytesOf(**added, batch.output()), expected));
      }
    }
  }
  EXPECT_GT(failed, 100u);
}

TEST(DeviceBatch, Bf16LeavesAsF32) {
  const Bytes base = NormalTensor(DType::kBF16, 200000, 0.02, 1);
  const Bytes finetune = Perturbed(DType::kBF16, base, 0.0001, 2);
  Bytes wide(finetune.size() * 2);
  ConvertElements(DType::kBF16, DType::kF32, finetune, wide);
  const CodedTensor coded = EncodeTensor(DType::kF32, wide, DType::kBF16, base);
  ASSERT_EQ(coded.frame.coded_dtype, DType::kBF16);
  ExpectSource(coded, wide);
  ExpectSource(EncodeTensor(DType::kF32, wide), wide);
}

// A base that is decoded in the batch, and a delta against that one's delta.
TEST(DeviceBatch, BlocksPredictBlocks) {
  const Bytes base = NormalTensor(DType::kBF16, 300000, 0.02, 1);
  const Bytes first = Perturbed(DType::kBF16, base, 0.0001, 2), second = Perturbed(DType::kBF16, first, 0.0001, 3);
  const CodedTensor of_base = EncodeTensor(DType::kBF16, base),
                    of_first = EncodeTensor(DType::kBF16, first, DType::kBF16, base),
                    of_second = EncodeTensor(DType::kBF16, second, DType::kBF16, first);
  for (const bool damaged : {false, true}) {
    HostBatch batch(8 << 20);
    BatchBuilder& builder = batch.builder();
    std::vector<Block> wanted;
    for (uint32_t i = 0; i < of_base.blocks.size(); ++i) {
      Bytes coded = of_base.blocks[i];
      if (damaged && i == 1) coded[coded.size() / 2] ^= std::byte{1};
      const Block a = **builder.AddBlock(of_base.frame, i, coded, {}, false);
      const Block b = **builder.AddBlock(of_first.frame, i, of_first.blocks[i], {.block = a}, false);
      wanted.push_back(**builder.AddBlock(of_second.frame, i, of_second.blocks[i], {.block = b}, true));
    }
    batch.Run();
    for (uint32_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(builder.Succeeded(wanted[i], batch.output()), !damaged || i != 1) << i;
      if (damaged && i == 1) continue;
      EXPECT_TRUE(
          std::ranges::equal(builder.BytesOf(wanted[i], batch.output()), BlockPart(second, of_second.frame, i, 2)));
    }
  }
}

// What does not fit is left out whole, and what came before it stays.
TEST(DeviceBatch, KeepsToItsRoom) {
  const Bytes source = NormalTensor(DType::kBF16, 900000, 0.02, 1);
  const CodedTensor coded = EncodeTensor(DType::kBF16, source);
  for (const uint64_t bytes : {uint64_t{1} << 16, uint64_t{300'000}, uint64_t{700'000}, uint64_t{1'000'003}}) {
    HostBatch batch(bytes);
    std::vector<std::pair<uint32_t, Block>> added;
    for (uint32_t i = 0; i < coded.blocks.size(); ++i) {
      const auto block = batch.builder().AddBlock(coded.frame, i, coded.blocks[i], {}, true);
      ASSERT_TRUE(block.ok());
      if (*block) added.emplace_back(i, **block);
    }
    EXPECT_LT(added.size(), coded.blocks.size());
    const DeviceProgram& program = batch.builder().Finish();
    EXPECT_LE(program.input_bytes, bytes);
    EXPECT_LE(program.output_bytes, bytes);
    batch.Run();
    for (const auto& [index, block] : added) {
      EXPECT_TRUE(batch.builder().Succeeded(block, batch.output()));
      EXPECT_TRUE(
          std::ranges::equal(batch.builder().BytesOf(block, batch.output()), BlockPart(source, coded.frame, index, 2)));
    }
  }
}

// --- Compact tensors.

std::vector<BatchBuilder::Piece> PiecesOf(const CompactModel& m, uint32_t block) {
  std::vector<BatchBuilder::Piece> pieces;
  const uint32_t width = DTypeBytes(m.frame.dtype);
  for (const CompactPiece& piece : CompactPieces(m.frame, block)) {
    const uint64_t at = piece.segment->first_elem + piece.begin;
    pieces.push_back({piece, InputsOf(m, piece), {.bytes = ByteSpan(m.base).subspan(at * width, piece.elems * width)}});
  }
  return pieces;
}

Result<Bytes> RebuildOnCpu(const CompactModel& m, uint32_t block) {
  const uint32_t width = DTypeBytes(m.frame.dtype);
  Bytes out(uint64_t{m.frame.BlockElems(block)} * width);
  for (const BatchBuilder::Piece& piece : PiecesOf(m, block)) {
    CompactScratch scratch;
    RETURN_IF_ERROR(
        RebuildPiece(m.frame, piece.piece, piece.inputs, piece.prediction.bytes, scratch,
                     MutableByteSpan(out).subspan(piece.piece.block_begin * width, piece.piece.elems * width)));
  }
  return out;
}

void ExpectAsOnCpu(const CompactModel& m) {
  HostBatch batch(32 << 20);
  std::vector<Block> blocks;
  for (uint32_t i = 0; i < m.frame.BlockCount(); ++i) {
    const auto block = batch.builder().AddCompact(m.frame, i, PiecesOf(m, i));
    ASSERT_TRUE(block.ok()) << block.status().ToString();
    ASSERT_TRUE(block->has_value());
    blocks.push_back(**block);
  }
  batch.Run();
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    const Result<Bytes> expected = RebuildOnCpu(m, i);
    ASSERT_EQ(batch.builder().Succeeded(blocks[i], batch.output()), expected.ok());
    if (!expected.ok()) continue;
    const ByteSpan out = batch.builder().BytesOf(blocks[i], batch.output());
    const auto differs = std::mismatch(out.begin(), out.end(), expected->begin()).first - out.begin();
    EXPECT_EQ(static_cast<size_t>(differs), expected->size()) << "block " << i;
  }
}

TEST_P(EveryFloatDevice, CompactOddShapesAndBlockEdges) {
  for (const uint32_t block_elems : {97u, 1000u, 4096u, 1u << 17})
    ExpectAsOnCpu(MakeModel(GetParam(), OddShapes(), block_elems, block_elems));
}

// Where eight elements are made at a time.
TEST_P(EveryFloatDevice, CompactEvenShapes) {
  const std::vector<CompactSegment> segments = {
      WithResidual(Plain(64, 256, 8), 0),
      WithResidual(Plain(60, 128, 3), 64, true),
      WithMask(Plain(100, 512, 4), 1, 3),
      Nearest(WithResidual(Plain(33, 64, 16), 32)),
      WithResidual(WithMask(Plain(8, 4096, 2), 5, 2), 4096),
  };
  for (const uint32_t block_elems : {1024u, 4096u, 1u << 17})
    ExpectAsOnCpu(MakeModel(GetParam(), segments, block_elems, block_elems));
}

TEST_P(EveryFloatDevice, CompactLargeAndTinyScales) {
  const std::vector<CompactSegment> segments = {WithResidual(Plain(20, 52, 3), 8), Plain(8, 64, 8),
                                                Nearest(Plain(9, 50, 3))};
  for (const float scale : {0x1p-130f, 1e-9f, 1.0f, 1e6f, 0x1p57f})
    ExpectAsOnCpu(MakeModel(GetParam(), segments, 776, 5, scale));
}

// Steps of more elements than 32 bits count, where they change.
TEST(DeviceBatch, CompactHugeGroups) {
  constexpr uint64_t kGroup = (uint64_t{1} << 33) + 1000;
  CompactModel m;
  CompactFrame compact;
  compact.seed = 5;
  compact.segments = {WithResidual(Plain(1, 3 * kGroup / 2, 0), kGroup)};
  ASSERT_TRUE(compact.FinishLayout(3 * kGroup / 2).ok());
  m.frame.encoding = Encoding::kCompact;
  m.frame.dtype = m.frame.coded_dtype = DType::kBF16;
  m.frame.elems = 3 * kGroup / 2;
  m.frame.block_elems = 4096;
  m.frame.compact = std::make_shared<const CompactFrame>(std::move(compact));
  for (const uint64_t elem : {uint64_t{0}, uint64_t{1} << 32, kGroup, kGroup + 5000}) {
    const auto index = static_cast<uint32_t>(elem / m.frame.block_elems);
    const CompactPiece piece = CompactPieces(m.frame, index)[0];
    EXPECT_EQ(piece.steps.count, index == kGroup / m.frame.block_elems ? 2u : 1u);
    std::mt19937_64 rng(elem);
    std::vector<uint16_t> residual, steps = {0x3b00, 0xbc80};
    AppendTokens(RandomLevels(piece.residual.count * kResidualTokenLevels, kMaxQuadLevel, 2, rng), kResidualTokenLevels,
                 residual);
    steps.resize(piece.steps.count);
    const Bytes base = NormalTensor(DType::kBF16, piece.elems, 0.02, 3);
    const CompactInputs inputs = {{}, {}, std::as_bytes(std::span(residual)), {}, std::as_bytes(std::span(steps))};
    Bytes expected(base.size());
    CompactScratch scratch;
    ASSERT_TRUE(RebuildPiece(m.frame, piece, inputs, base, scratch, expected).ok());
    HostBatch batch(1 << 20);
    const BatchBuilder::Piece whole = {piece, inputs, {.bytes = base}};
    const Block block = **batch.builder().AddCompact(m.frame, index, std::span(&whole, 1));
    batch.Run();
    ASSERT_TRUE(batch.builder().Succeeded(block, batch.output()));
    EXPECT_TRUE(std::ranges::equal(batch.builder().BytesOf(block, batch.output()), expected)) << elem;
  }
}

TEST(DeviceBatch, CompactRefusesBadTokensAndScales) {
  const CompactModel good = MakeModel(DType::kBF16, {WithResidual(Plain(12, 20, 3), 60)}, 4096, 1);
  ExpectAsOnCpu(good);
  const uint16_t no_token = FromSelfValue(uint16_t{0xffff}, false);
  CompactModel bad = good;
  bad.factors[0] = no_token;
  ExpectAsOnCpu(bad);
  bad = good;
  bad.factors.back() = no_token;
  ExpectAsOnCpu(bad);
  bad = good;
  bad.residual[20] = no_token;
  ExpectAsOnCpu(bad);
  bad = good;
  bad.scales[0] = 0x7f80;
  HostBatch batch(1 << 20);
  EXPECT_EQ(batch.builder().AddCompact(bad.frame, 0, PiecesOf(bad, 0)).status().code(), StatusCode::kCorruption);
}

// Of a base that is decoded in the batch.
TEST(DeviceBatch, CompactAgainstABlock) {
  CompactModel m = MakeModel(DType::kBF16, {WithResidual(Plain(300, 400, 4), 0)}, 1 << 17, 1);
  m.base = NormalTensor(DType::kBF16, m.frame.elems, 0.02, 9);
  const CodedTensor base = EncodeTensor(DType::kBF16, m.base);
  ASSERT_EQ(base.frame.encoding, Encoding::kSelf);
  HostBatch batch(8 << 20);
  const Block decoded = **batch.builder().AddBlock(base.frame, 0, base.blocks[0], {}, false);
  std::vector<BatchBuilder::Piece> pieces = PiecesOf(m, 0);
  ASSERT_EQ(pieces.size(), 1u);
  pieces[0].prediction = {.block = decoded};
  const Block block = **batch.builder().AddCompact(m.frame, 0, pieces);
  batch.Run();
  ASSERT_TRUE(batch.builder().Succeeded(block, batch.output()));
  EXPECT_TRUE(std::ranges::equal(batch.builder().BytesOf(block, batch.output()), *RebuildOnCpu(m, 0)));
}

}  // namespace
}  // namespace modelstore::test
