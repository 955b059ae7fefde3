#include "codec/decode/encodings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

namespace modelstore {
namespace {

// A frame with the tables that its encoding's inputs are told by.
Frame FrameOf(Encoding encoding) {
  Frame frame = PlainFrame(encoding, DType::kBF16, 64);
  if (encoding == Encoding::kCompact) frame.compact = std::make_shared<const CompactFrame>();
  if (encoding == Encoding::kProjected) frame.projection = Projection{.columns = 8, .depth = 16, .has_norm = true};
  return frame;
}

TEST(Encodings, EachHasTwoRowsThatAgree) {
  unsigned number = 0;
  for (; const EncodingFacts* const facts = FindEncoding(static_cast<uint8_t>(number)); ++number) {
    SCOPED_TRACE(facts->name);
    const EncodingRow& row = RowOf(facts->encoding);
    EXPECT_EQ(static_cast<unsigned>(facts->encoding), number);
    EXPECT_EQ(row.encoding, facts->encoding);
    ASSERT_NE(row.parse, nullptr);
    ASSERT_NE(row.serialize, nullptr);
    ASSERT_NE(row.inputs, nullptr);
    ASSERT_NE(row.peak_bytes, nullptr);
    EXPECT_EQ(row.decode != nullptr, facts->has_blocks);
    EXPECT_EQ(row.rebuild == nullptr, facts->has_blocks);
    std::vector<InputRole> roles;
    for (const InputNeed& need : row.inputs(FrameOf(facts->encoding))) roles.push_back(need.role);
    EXPECT_THAT(roles, testing::ElementsAreArray(facts->roles));
    for (const InputRole role : facts->roles) EXPECT_NE(InputName(role), "view of unknown role");
  }
  EXPECT_EQ(number, 6u);
  EXPECT_EQ(FindEncoding(255), nullptr);
}

TEST(Encodings, TheMemoryThatABlockTakesCountsWhatItIsMadeFrom) {
  const BlockNeed own = {.block = 1000, .stored = 1008, .prediction = 500};
  const std::array seen = {SeenNeed{.block = 700, .peak = 3000}, SeenNeed{.block = 4000, .peak = 100}};
  for (uint8_t number = 0; const EncodingFacts* const facts = FindEncoding(number); ++number) {
    SCOPED_TRACE(facts->name);
    const Frame frame = FrameOf(facts->encoding);
    const uint64_t alone = RowOf(facts->encoding).peak_bytes(frame, own, {});
    const uint64_t with = RowOf(facts->encoding).peak_bytes(frame, own, seen);
    EXPECT_GE(alone, own.block);
    EXPECT_EQ(with > alone, !facts->roles.empty());
    if (!facts->roles.empty()) EXPECT_GE(with, own.block + 4000);
  }
}

}  // namespace
}  // namespace modelstore
