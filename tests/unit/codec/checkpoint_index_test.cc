#include "codec/tensor/checkpoint_index.h"

#include <gmock/gmock.h>

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Result<std::set<std::string>> Files(const std::string& text) { return IndexedFiles(AsBytes(text)); }

TEST(CheckpointIndexTest, NamesEachFileOnce) {
  const auto files = Files(R"({"metadata": {"total_size": 99, "weight_map": {"x": "y"}, "l": [[1], {}]},
                               "weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"}, "z": null})");
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  EXPECT_THAT(*files, ElementsAre("1.safetensors", "2.safetensors"));
  EXPECT_THAT(*Files(R"({"weight_map": {}})"), IsEmpty());
}

TEST(CheckpointIndexTest, RefusesWhatIsNoIndex) {
  for (const char* bad : {"", "x", "[]", "3", "\"x\"", "{}", R"({"weight_map": 3})", R"({"weight_map": []})",
                          R"({"weight_map": {"a": 3}})", R"({"weight_map": {"a": ["x"]}})",
                          R"({"weight_map": {"a": {}}})", R"({"weight_map": {"a": null}})",
                          R"({"weight_map": {"a": "x")", R"([{"weight_map": {}}])", R"({"weight_map": {"a": "x"},})"})
    EXPECT_EQ(Files(bad).status().code(), StatusCode::kCorruption) << bad;
}

TEST(CheckpointIndexTest, DeepNestingCostsNothing) {
  const std::string deep = std::string(5'000'000, '[') + std::string(5'000'000, ']');
  EXPECT_THAT(*Files("{\"x\": " + deep + ", \"weight_map\": {\"a\": \"f\"}}"), ElementsAre("f"));
  EXPECT_FALSE(Files(std::string(5'000'000, '[')).ok());
}

}  // namespace
}  // namespace modelstore
