#include "catalog/derive/checkpoint_files.h"

#include <gmock/gmock.h>

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Text(const Result<Bytes>& bytes) {
  EXPECT_TRUE(bytes.ok()) << bytes.status().ToString();
  return bytes.ok() ? std::string(AsChars(*bytes)) : "";
}

constexpr uint32_t kKept[] = {0, 1, 3};

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
  EXPECT_EQ(ReadSafetensorsHeader(bytes, bytes.size()).status().code(), StatusCode::kCorruption);
}

TEST(CheckpointFilesTest, ConfigurationsLoseLayers) {
  const std::string config = R"({
    "model_type": "x", "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "rope": [1, 2, 3, 4],
    "mlp_only_layers": [1, 2, 3], "max_window_layers": 3})";
  EXPECT_EQ(Text(ConfigWithLayers(AsBytes(config), 4, kKept)), R"({
  "model_type": "x",
  "num_hidden_layers": 3,
  "layer_types": [
    "a",
    "b",
    "d"
  ],
  "rope": [
    1,
    2,
    3,
    4
  ],
  "mlp_only_layers": [
    1,
    2
  ],
  "max_window_layers": 2
}
)");
  EXPECT_THAT(Text(ConfigWithLayers(AsBytes(std::string(R"({"n_layer": 4, "n_head": 4})")), 4, kKept)),
              HasSubstr("\"n_layer\": 3,\n  \"n_head\": 4"));
  EXPECT_THAT(Text(ConfigWithLayers(AsBytes(std::string(R"({"text_config": {"num_hidden_layers": 4}})")), 4, kKept)),
              HasSubstr("\"num_hidden_layers\": 3"));
  EXPECT_THAT(Text(ConfigWithLayers(AsBytes(std::string(R"({"num_layers": 4, "attention_types": [[["g", "l"], 2]]})")),
                                    4, kKept)),
              HasSubstr("\"g\",\n        \"l\",\n        \"l\"\n      ],\n      1"));
}

TEST(CheckpointFilesTest, RefusesConfigurationsOfOtherModels) {
  for (const char* config : {R"({"num_hidden_layers": 5})", "{}", R"({"num_hidden_layers": "4"})"})
    EXPECT_EQ(ConfigWithLayers(AsBytes(std::string(config)), 4, kKept).status().code(), StatusCode::kUnsupported)
        << config;
  for (const char* config : {"", "[]", "{", "\"x\""})
    EXPECT_EQ(ConfigWithLayers(AsBytes(std::string(config)), 4, kKept).status().code(), StatusCode::kCorruption)
        << config;
}

TEST(CheckpointFilesTest, SurvivesHostileConfigurations) {
  const std::string deep =
      R"({"num_hidden_layers": 4, "x": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(ConfigWithLayers(AsBytes(deep), 4, kKept).status().code(), StatusCode::kCorruption);
  const std::string in_text = R"({"num_hidden_layers": 4, "x": ")" + std::string(1000, '[') + R"(\""})";
  EXPECT_TRUE(ConfigWithLayers(AsBytes(in_text), 4, kKept).ok());
  for (const char* config : {R"({"num_layers": 4, "attention_types": [[[], 18446744073709551615]]})",
                             R"({"num_layers": 4, "attention_types": [[["a"], 18446744073709551615], 3]})"})
    EXPECT_EQ(ConfigWithLayers(AsBytes(std::string(config)), 4, kKept).status().code(), StatusCode::kUnsupported)
        << config;
}

// Layers 0, 1, 3 of 4: the third would be of another kind.
TEST(CheckpointFilesTest, RefusesToShiftKindsThatFollowFromNumbers) {
  for (const char* config :
       {R"({"num_hidden_layers": 4, "sliding_window_pattern": 2})",
        R"({"num_hidden_layers": 4, "decoder_sparse_step": 2})", R"({"num_hidden_layers": 4, "model_type": "gemma2"})"})
    EXPECT_EQ(ConfigWithLayers(AsBytes(std::string(config)), 4, kKept).status().code(), StatusCode::kUnsupported)
        << config;
  for (const char* config : {R"({"num_hidden_layers": 4, "sliding_window_pattern": 2, "layer_types": [1, 2, 3, 4]})",
                             R"({"num_hidden_layers": 4, "decoder_sparse_step": 1})",
                             R"({"num_hidden_layers": 4, "model_type": "gemma2", "layer_types": [1, 2, 3, 4]})"})
    EXPECT_TRUE(ConfigWithLayers(AsBytes(std::string(config)), 4, kKept).ok()) << config;
  constexpr uint32_t kWhole[] = {2, 3};
  EXPECT_TRUE(
      ConfigWithLayers(AsBytes(std::string(R"({"num_hidden_layers": 4, "model_type": "gemma2"})")), 4, kWhole).ok());
}

TEST(CheckpointFilesTest, IndexesAreRewritten) {
  const std::string index =
      R"({"metadata": {"total_size": 99, "x": 1}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})";
  const auto files = IndexedFiles(AsBytes(index));
  ASSERT_TRUE(files.ok());
  EXPECT_THAT(*files, ElementsAre("1.safetensors", "2.safetensors"));
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
  for (const char* bad : {"{}", R"({"weight_map": 3})", R"({"weight_map": {"a": 3}})", "x"})
    EXPECT_EQ(IndexedFiles(AsBytes(std::string(bad))).status().code(), StatusCode::kCorruption) << bad;
}

}  // namespace
}  // namespace modelstore
