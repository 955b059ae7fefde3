// Projected tensors: their frames, which rows a block is of, and that computing a block is computing the whole.
#include "codec/decode/projected_decoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "codec/decode/block_decoder.h"
#include "codec/kernels/convert.h"

namespace modelstore {
namespace {

Frame ProjectedFrame(DType dtype, uint64_t rows, uint64_t columns, uint64_t depth, bool has_norm,
                     uint32_t block_elems) {
  Frame frame;
  frame.encoding = Encoding::kProjected;
  frame.dtype = frame.coded_dtype = dtype;
  frame.elems = rows * columns;
  frame.block_elems = block_elems;
  frame.projection = {columns, depth, has_norm};
  return frame;
}

TEST(ProjectedFrame, SurvivesARoundTrip) {
  const Bytes bytes = SerializeFrame(ProjectedFrame(DType::kBF16, 100, 36, 48, true, 1024));
  const Result<Frame> read = ParseFrame(bytes);
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(read->encoding, Encoding::kProjected);
  EXPECT_EQ(read->elems, 3600u);
  EXPECT_EQ(read->projection->columns, 36u);
  EXPECT_EQ(read->projection->depth, 48u);
  EXPECT_TRUE(read->projection->has_norm);
  EXPECT_EQ(SerializeFrame(*read), bytes);
  Bytes block(BlockBytes(*read, 0));
  EXPECT_EQ(DecodeBlock(*read, 0, block, {}, block).code(), StatusCode::kCorruption);
}

TEST(ProjectedFrame, RefusesWhatCannotBe) {
  const auto code = [](const Frame& frame) { return ParseFrame(SerializeFrame(frame)).status().code(); };
  EXPECT_EQ(code(ProjectedFrame(DType::kF64, 4, 4, 4, false, 16)), StatusCode::kCorruption);
  EXPECT_EQ(code(ProjectedFrame(DType::kBF16, 4, 4, 0, false, 16)), StatusCode::kCorruption);
  EXPECT_EQ(code(ProjectedFrame(DType::kBF16, 0, 4, 4, false, 16)), StatusCode::kCorruption);
  EXPECT_EQ(code(ProjectedFrame(DType::kBF16, 4, 1 << 14, 1 << 13, false, 16)), StatusCode::kCorruption);
  EXPECT_EQ(code(ProjectedFrame(DType::kBF16, uint64_t{1} << 40, 1, uint64_t{1} << 26, false, 1 << 20)),
            StatusCode::kCorruption);
  Frame uneven = ProjectedFrame(DType::kBF16, 4, 4, 4, false, 16);
  uneven.elems = 15;
  EXPECT_EQ(code(uneven), StatusCode::kCorruption);
  const Bytes whole = SerializeFrame(ProjectedFrame(DType::kBF16, 4, 4, 4, true, 16));
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(ParseFrame(ByteSpan(whole).first(n)).ok()) << n;
  Bytes longer = whole, flags = whole;
  longer.push_back(std::byte{0});
  flags.back() = std::byte{2};
  EXPECT_EQ(ParseFrame(longer).status().code(), StatusCode::kCorruption);
  EXPECT_EQ(ParseFrame(flags).status().code(), StatusCode::kUnsupported);
}

TEST(ProjectedDecoder, BlocksMakeTheWhole) {
  constexpr uint64_t kRows = 150, kColumns = 37, kDepth = 50;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Bytes weight(kRows * kDepth * 2), axes(kDepth * kColumns * 2);
  for (Bytes* bytes : {&weight, &axes}) {
    std::vector<float> values(bytes->size() / 2);
    for (float& x : values) x = normal(random);
    ConvertFloats(DType::kF32, bytes == &axes ? kAxesDType : DType::kBF16,
                  reinterpret_cast<const std::byte*>(values.data()), bytes->data(), values.size());
  }
  std::vector<float> norm(kDepth);
  for (float& x : norm) x = normal(random);
  const auto project = [&](ByteSpan rows, uint64_t skip, MutableByteSpan out, uint64_t panel) {
    RowProjector projector(DType::kBF16, rows, norm, kDepth, kColumns);
    for (uint64_t d = 0; d < kDepth; d += panel)
      projector.Add(ByteSpan(axes).subspan(d * kColumns * 2, std::min(panel, kDepth - d) * kColumns * 2));
    projector.Finish(skip, out);
  };
  Bytes whole(kRows * kColumns * 2);
  project(weight, 0, whole, kDepth);
  // As docs/format.md says.
  const auto at = [](DType dtype, const Bytes& bytes, size_t i) {
    float value = 0;
    ConvertFloats(dtype, DType::kF32, bytes.data() + 2 * i, reinterpret_cast<std::byte*>(&value), 1);
    return value;
  };
  for (const auto& [i, j] : {std::pair<uint64_t, uint64_t>{0, 0}, {149, 36}, {70, 20}}) {
    volatile float sum = 0;
    for (uint64_t d = 0; d < kDepth; ++d) {
      volatile float scaled = at(DType::kBF16, weight, i * kDepth + d) * norm[d];
      volatile float product = scaled * at(kAxesDType, axes, d * kColumns + j);
      sum = sum + product;
    }
    const float exact = sum;
    Bytes rounded(2);
    ConvertFloats(DType::kF32, DType::kBF16, reinterpret_cast<const std::byte*>(&exact), rounded.data(), 1);
    EXPECT_EQ(std::memcmp(rounded.data(), whole.data() + 2 * (i * kColumns + j), 2), 0) << i << " " << j;
  }
  const Frame frame = ProjectedFrame(DType::kBF16, kRows, kColumns, kDepth, true, 1000);
  Bytes joined;
  for (uint32_t b = 0; b < frame.BlockCount(); ++b) {
    const ProjectedRows rows = RowsOfBlock(frame, b);
    ASSERT_LE(rows.first + rows.count, kRows);
    Bytes block(BlockBytes(frame, b));
    project(ByteSpan(weight).subspan(rows.first * kDepth * 2, rows.count * kDepth * 2), rows.skip_elems, block, 7 + b);
    joined.insert(joined.end(), block.begin(), block.end());
  }
  EXPECT_EQ(joined, whole);
}

}  // namespace
}  // namespace modelstore
