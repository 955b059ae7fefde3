#include "catalog/derive/checkpoint_files.h"

#include <gmock/gmock.h>

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

using ::testing::ElementsAre;

std::string Text(const Result<Bytes>& bytes) {
  EXPECT_TRUE(bytes.ok()) << bytes.status().ToString();
  return bytes.ok() ? std::string(AsChars(*bytes)) : "";
}

TEST(CheckpointFilesTest, HeadersSurviveARoundTrip) {
  SafetensorsHeader header;
  header.metadata = R"({"format":"pt"})";
  header.tensors = {{"b", "BF16", {2, 3}, 0, 12}, {"a\"\\", "F8_E8M0", {5}, 0, 5}, {"empty", "F32", {0, 4}, 0, 0}};
  const Bytes bytes = *WriteSafetensorsHeader(header);
  EXPECT_EQ(bytes.size() % 8, 0u);
  const auto read = ReadSafetensorsHeader(bytes, bytes.size() + 17);
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(read->metadata, header.metadata);
  ASSERT_EQ(read->tensors.size(), 3u);
  EXPECT_EQ(read->tensors[0].name, "b");
  EXPECT_EQ(read->tensors[0].begin, bytes.size());
  EXPECT_EQ(read->tensors[1].name, "a\"\\");
  EXPECT_EQ(read->tensors[1].dtype, "F8_E8M0");
  EXPECT_THAT(read->tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(ReadSafetensorsHeader(bytes, bytes.size()).status().code(), StatusCode::kUnsupported);
}

TEST(CheckpointFilesTest, IndexesAreRewritten) {
  const std::string index =
      R"({"metadata": {"total_size": 99, "x": 1}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})";
  EXPECT_EQ(Text(RewriteIndex(AsBytes(index), {{"a", {"1.safetensors", 4, 2}}, {"c", {"2.safetensors", 6, 3}}})),
            R"({
  "metadata": {
    "total_size": 10,
    "x": 1
  },
  "weight_map": {
    "a": "1.safetensors",
    "c": "2.safetensors"
  }
}
)");
}

}  // namespace
}  // namespace modelstore
