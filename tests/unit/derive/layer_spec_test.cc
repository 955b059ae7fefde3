#include "catalog/derive/layer_spec.h"

#include <gmock/gmock.h>

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<uint32_t> Dropped(std::string_view spec, uint32_t layers, std::vector<double> influence = {}) {
  const Result<std::vector<uint32_t>> kept = DropLayers(spec, layers, influence);
  EXPECT_TRUE(kept.ok()) << kept.status().ToString();
  std::vector<uint32_t> dropped;
  for (uint32_t layer = 0; kept.ok() && layer < layers; ++layer) {
    if (std::find(kept->begin(), kept->end(), layer) == kept->end()) dropped.push_back(layer);
  }
  return dropped;
}

std::string Refusal(const Result<std::vector<uint32_t>>& kept) {
  EXPECT_EQ(kept.status().code(), StatusCode::kInvalidArgument);
  return std::string(kept.status().message());
}

TEST(LayerSpecTest, ListsNameLayersAndRanges) {
  EXPECT_THAT(Dropped("3", 8), ElementsAre(3));
  EXPECT_THAT(Dropped("20-23,28,0", 30), ElementsAre(0, 20, 21, 22, 23, 28));
  EXPECT_THAT(*KeepLayers("0-2,7", 8), ElementsAre(0, 1, 2, 7));
}

TEST(LayerSpecTest, LastTakesACountOrAShare) {
  EXPECT_THAT(Dropped("last:2", 8), ElementsAre(6, 7));
  EXPECT_THAT(Dropped("last:25%", 30), ElementsAre(23, 24, 25, 26, 27, 28, 29));
}

TEST(LayerSpecTest, UniformIsEvenlySpaced) {
  EXPECT_THAT(Dropped("uniform:4", 32), ElementsAre(4, 12, 20, 28));
  EXPECT_THAT(Dropped("uniform:3", 30), ElementsAre(5, 15, 25));
  EXPECT_EQ(Dropped("uniform:29", 30).size(), 29u);
}

TEST(LayerSpecTest, AutoDropsTheLeastInfluential) {
  EXPECT_THAT(Dropped("auto:2", 4, {0.5, 0.1, 0.3, 0.2}), ElementsAre(1, 3));
  EXPECT_THAT(Dropped("auto:1", 3, {0.1, 0.1, 0.1}), ElementsAre(2));  // of equal ones the later
  EXPECT_THAT(Refusal(DropLayers("auto:1", 4, {})), HasSubstr("--moments"));
}

TEST(LayerSpecTest, RefusesWhatIsWrong) {
  for (const char* spec : {"", "x", "3-", "3-2", "1,,2", "1,", "-1", "last:", "last:x", "last:101%", "uniform:25%",
                           "auto:-1", "99999999999", "1 ", "last:2%%"})
    EXPECT_THAT(Refusal(DropLayers(spec, 8, {})), HasSubstr("expected a list")) << spec;
  EXPECT_THAT(Refusal(DropLayers("8", 8, {})), HasSubstr("no layer 8; the model has 8, from 0 to 7"));
  EXPECT_THAT(Refusal(DropLayers("2,1-3", 8, {})), HasSubstr("named twice"));
  EXPECT_THAT(Refusal(DropLayers("0-4294967295", 8, {})), HasSubstr("no layer"));
  EXPECT_THAT(Refusal(DropLayers("last:9", 8, {})), HasSubstr("only 8"));
  for (const char* spec : {"0-7", "last:100%", "last:8", "uniform:8"})
    EXPECT_THAT(Refusal(DropLayers(spec, 8, {})), HasSubstr("no layer would be left")) << spec;
  for (const char* spec : {"last:0", "last:1%", "uniform:0"})
    EXPECT_THAT(Refusal(DropLayers(spec, 8, {})), HasSubstr("no layer would be dropped")) << spec;
  EXPECT_THAT(Refusal(KeepLayers("0-7", 8)), HasSubstr("no layer would be dropped"));
  EXPECT_THAT(Refusal(KeepLayers("last:2", 8)), HasSubstr("expected a list"));
}

TEST(LayerSpecTest, ListsAreShort) {
  EXPECT_EQ(LayerList(std::vector<uint32_t>{0, 1, 2, 7, 9, 10}), "0-2,7,9-10");
  EXPECT_EQ(LayerList({}), "");
}

}  // namespace
}  // namespace modelstore
