// Decodes the codec's examples out of docs/format.md.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

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
      std::istringstream words(line);
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

}  // namespace
}  // namespace modelstore::test
