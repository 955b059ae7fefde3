// Decodes the codec's examples out of docs/format.md.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "codec/decode/compact_decoder.h"
#include "tests/unit/codec/codec_fixture.h"

namespace modelstore::test {
namespace {

Bytes Example(const std::string& name) {
  std::ifstream in(std::filesystem::path(MODELSTORE_SOURCE_DIR) / "docs/format.md");
  std::string line;
  Bytes out;
  bool inside = false;
  while (std::getline(in, line)) {
    if (line == "```hex " + name) {
      inside = true;
    } else if (inside && line == "```") {
      break;
    } else if (inside) {
      std::istringstream words(line.substr(0, line.find('#')));
      for (std::string word; words >> word;) out.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
    }
  }
  return out;
}

TEST(FormatExamples, DeltaFrameAndBlock) {
  Bytes base, source;
  for (uint32_t i = 0; i < 200; ++i) {
    PutPattern(base, 0x3f80 + i % 7, 2);
    PutPattern(source, 0x3f80 + i % 7 + (i % 10 == 0 ? 1 : 0), 2);
  }
  const Bytes frame = Example("delta-frame");
  const Result<Frame> parsed = ParseFrame(frame);
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(SerializeFrame(*parsed), frame);
  OnEveryTarget([&] {
    Bytes out(400);
    const Status s = DecodeBlock(*parsed, 0, Example("delta-block"), base, out);
    ASSERT_TRUE(s.ok()) << s.ToString();
    EXPECT_EQ(out, source);
  });
  // And this build writes the same bytes.
  EncodePlan plan;
  plan.encoding = Encoding::kDelta;
  plan.dtype = plan.coded_dtype = DType::kBF16;
  plan.elems = 200;
  FrameBuilder builder(plan);
  builder.AddBlock(0, source, base);
  Result<BlockEncoder> encoder = std::move(builder).Finish();
  ASSERT_TRUE(encoder.ok());
  EXPECT_EQ(SerializeFrame(encoder->frame()), frame);
  Bytes block;
  ASSERT_TRUE(encoder->Encode(0, source, base, &block).ok());
  EXPECT_EQ(block, Example("delta-block"));
}

TEST(FormatExamples, CompactTensor) {
  const Bytes frame = Example("compact-frame");
  const Result<Frame> parsed = ParseFrame(frame);
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(SerializeFrame(*parsed), frame);
  const std::vector<CompactPiece> pieces = CompactPieces(*parsed, 0);
  ASSERT_EQ(pieces.size(), 1u);
  const Bytes factors = Example("compact-factors"), residual = Example("compact-residual"),
              scales = Example("compact-scales"), result = Example("compact-result");
  const auto part = [](const Bytes& all, CompactPiece::Range range) {
    return ByteSpan(all).subspan(range.begin * 2, range.count * 2);
  };
  const CompactPiece& p = pieces[0];
  const CompactInputs inputs = {part(factors, p.right), part(factors, p.left), part(residual, p.residual),
                                part(scales, p.scales), part(scales, p.steps)};
  EXPECT_EQ(inputs.right.size() + inputs.left.size(), factors.size());
  EXPECT_EQ(inputs.residual.size(), residual.size());
  EXPECT_EQ(inputs.scales.size() + inputs.steps.size(), scales.size());
  Bytes base;
  for (const uint16_t pattern : {0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0xbf00}) PutPattern(base, pattern, 2);
  OnEveryTarget([&] {
    CompactScratch scratch;
    Bytes out(12);
    ASSERT_TRUE(RebuildPiece(*parsed, p, inputs, base, scratch, out).ok());
    EXPECT_EQ(out, result);
  });
}

}  // namespace
}  // namespace modelstore::test
