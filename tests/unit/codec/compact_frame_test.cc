// Frames of compact tensors: layout, round trip, everything that must be refused.
#include "codec/decode/compact_frame.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codec/decode/frame.h"

namespace modelstore::test {
namespace {

CompactSegment Segment(uint64_t rows, uint64_t columns, uint32_t rank) {
  CompactSegment s;
  s.rows = rows;
  s.columns = columns;
  s.rank = rank;
  return s;
}

// 67 x 5 with a mask, 3 x 7 with both parts, 1 x 1 with nothing.
CompactFrame Example() {
  CompactFrame frame;
  frame.seed = 0x01020304;
  frame.segments = {Segment(67, 5, 3), Segment(3, 7, 2), Segment(1, 1, 0)};
  frame.segments[0].row_mask = {0xf0f0, 0x5};
  frame.segments[0].drift_code = 200;
  frame.segments[1].has_residual = true;
  frame.segments[1].group_elems = 4;
  frame.segments[1].biases = {1, 2, 3};
  frame.segments[2].nearest = true;
  return frame;
}
constexpr uint64_t kExampleElems = 67 * 5 + 21 + 1;

Frame Whole(const CompactFrame& compact, uint64_t elems) {
  Frame frame;
  frame.encoding = Encoding::kCompact;
  frame.dtype = frame.coded_dtype = DType::kBF16;
  frame.elems = elems;
  frame.block_elems = 64;
  frame.compact = std::make_shared<const CompactFrame>(compact);
  return frame;
}

StatusCode LayoutCode(CompactFrame frame, uint64_t elems) { return frame.FinishLayout(elems).code(); }

TEST(CompactFrame, LaysOutItsParts) {
  CompactFrame frame = Example();
  ASSERT_TRUE(frame.FinishLayout(kExampleElems).ok());
  const auto& [a, b, c] = std::tie(frame.segments[0], frame.segments[1], frame.segments[2]);
  EXPECT_EQ(a.factor_rows(), 10u);
  EXPECT_EQ(a.rows_before, (std::vector<uint64_t>{0, 8}));
  EXPECT_EQ(a.first_left_token, 8u);  // 15 levels, padded
  EXPECT_EQ(b.first_elem, 335u);
  EXPECT_EQ(b.first_factor_token, 23u);  // 30 more
  EXPECT_EQ(b.first_left_token, 30u);
  EXPECT_EQ(frame.factor_tokens, 33u);
  EXPECT_EQ(b.first_scale, 3u);
  EXPECT_EQ(b.groups(), 6u);
  EXPECT_EQ(frame.residual_tokens, 6u);  // 21 levels in quadruples
  EXPECT_EQ(c.first_elem, 356u);
  EXPECT_EQ(c.first_residual_token, 6u);
  EXPECT_EQ(frame.scales, 3u + 2 + 6);
  frame.segments[1].wide_residual = true;
  ASSERT_TRUE(frame.FinishLayout(kExampleElems).ok());
  EXPECT_EQ(frame.residual_tokens, 11u);
}

TEST(CompactFrame, ComesBackThroughItsBytes) {
  CompactFrame compact = Example();
  ASSERT_TRUE(compact.FinishLayout(kExampleElems).ok());
  const Bytes bytes = SerializeFrame(Whole(compact, kExampleElems));
  const Result<Frame> back = ParseFrame(bytes);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(SerializeFrame(*back), bytes);
  EXPECT_EQ(back->BlockCount(), 6u);
  EXPECT_EQ(back->coded_dtype, DType::kBF16);
  ASSERT_EQ(back->compact->segments.size(), 3u);
  EXPECT_EQ(back->compact->segments[0].row_mask, compact.segments[0].row_mask);
  EXPECT_EQ(back->compact->segments[1].biases, compact.segments[1].biases);
  EXPECT_EQ(back->compact->segments[0].drift_code, 200);
  EXPECT_FALSE(back->compact->segments[1].nearest);
  EXPECT_TRUE(back->compact->segments[2].nearest);
  EXPECT_EQ(back->compact->factor_tokens, compact.factor_tokens);
}

TEST(CompactFrame, RefusesEveryCutAndTail) {
  CompactFrame compact = Example();
  const Bytes bytes = SerializeFrame(Whole(compact, kExampleElems));
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ParseFrame(ByteSpan(bytes).first(n)).ok()) << n;
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_EQ(ParseFrame(longer).status().code(), StatusCode::kCorruption);
}

TEST(CompactFrame, RefusesWhatContradictsItself) {
  ASSERT_EQ(LayoutCode(Example(), kExampleElems), StatusCode::kOk);
  EXPECT_EQ(LayoutCode(Example(), kExampleElems + 1), StatusCode::kCorruption);
  EXPECT_EQ(LayoutCode(Example(), kExampleElems - 1), StatusCode::kCorruption);
  const auto broken = [](auto change) {
    CompactFrame frame = Example();
    change(frame);
    return LayoutCode(frame, kExampleElems);
  };
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[2].rows = 0; }), StatusCode::kCorruption);
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[2].columns = 0; }), StatusCode::kCorruption);
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[0].rank = kMaxCompactRank + 1; }), StatusCode::kCorruption);
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[0].row_mask.pop_back(); }), StatusCode::kCorruption);
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[0].row_mask[1] |= 8; }), StatusCode::kCorruption);  // row 67
  EXPECT_EQ(broken([](CompactFrame& f) { f.segments[0].wide_residual = true; }), StatusCode::kCorruption);
  // 2^33 x 2^31 = 2^64 elements: the product overflows to 0.
  CompactFrame huge;
  huge.segments = {Segment(uint64_t{1} << 33, uint64_t{1} << 31, 0)};
  EXPECT_EQ(LayoutCode(huge, 0), StatusCode::kCorruption);
  huge.segments = {Segment(1, kMaxRightFactorLevels, 2)};
  EXPECT_EQ(LayoutCode(huge, kMaxRightFactorLevels), StatusCode::kCorruption);
  huge.segments = {Segment(1, kMaxRightFactorLevels, 1)};
  EXPECT_EQ(LayoutCode(huge, kMaxRightFactorLevels), StatusCode::kOk);
  // 2^58 rows of rank 1024: 2^68 levels of u.
  huge.segments = {Segment(uint64_t{1} << 58, 1, kMaxCompactRank)};
  EXPECT_EQ(LayoutCode(huge, uint64_t{1} << 58), StatusCode::kCorruption);
}

TEST(CompactFrame, RefusesCountsThatTheBytesCannotHold) {
  ByteWriter out;
  out.U32(0);
  out.Varint(1u << 19);
  for (int i = 0; i < 5; ++i) out.U8(1);
  const Bytes bytes = out.Release();
  ByteReader in(bytes);
  EXPECT_EQ(ParseCompact(in, 1).status().code(), StatusCode::kCorruption);
}

TEST(CompactFrame, IsForFloatingPointTypesOnly) {
  CompactFrame compact = Example();
  Frame frame = Whole(compact, kExampleElems);
  frame.dtype = DType::kU16;
  EXPECT_EQ(ParseFrame(SerializeFrame(frame)).status().code(), StatusCode::kCorruption);
}

TEST(CompactFrame, DriftIsNeverShownLessThanMeasured) {
  EXPECT_EQ(DriftCode(0), 0);
  EXPECT_EQ(DriftCode(-1), 0);
  EXPECT_EQ(DriftCode(1), 224);
  EXPECT_EQ(DriftFromCode(224), 1);
  EXPECT_EQ(DriftCode(std::numeric_limits<double>::infinity()), 255);
  EXPECT_EQ(DriftCode(1e-30), 1);
  for (double d = 1e-8; d < 14; d *= 1.01) {
    const double shown = DriftFromCode(DriftCode(d));
    EXPECT_GE(shown, d);
    EXPECT_LE(shown, d * std::exp2(1.0 / 8) * (1 + 1e-12));
  }
}

}  // namespace
}  // namespace modelstore::test
