#include "catalog/derive/layer_names.h"

#include <gmock/gmock.h>

namespace modelstore {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Names(const std::string& before, uint32_t layers, const std::string& rest) {
  std::vector<std::string> names = {"embedding.weight"};
  for (uint32_t layer = 0; layer < layers; ++layer) names.push_back(before + std::to_string(layer) + rest);
  return names;
}

TEST(LayerNamesTest, KnowsTheFamilies) {
  const std::pair<const char*, const char*> families[] = {
      {"model.layers.", ".self_attn.q_proj.weight"},      // Llama, Qwen, Gemma, Mistral
      {"model.decoder.layers.", ".fc1.bias"},             // OPT
      {"transformer.h.", ".attn.c_attn.weight"},          // GPT-2 with its prefix
      {"h.", ".attn.c_attn.weight"},                      // … and as it is published
      {"gpt_neox.layers.", ".attention.dense.weight"},    // NeoX, Pythia
      {"bert.encoder.layer.", ".output.dense.weight"},    // BERT
      {"encoder.layer.", ".output.dense.weight"},         // … its body
      {"model.language_model.layers.", ".mlp.up.weight"}  // multimodal
  };
  for (const auto& [before, rest] : families) {
    const auto found = FindLayers(Names(before, 12, rest), {});
    ASSERT_TRUE(found.ok()) << before << found.status().ToString();
    EXPECT_EQ(found->layers, 12u) << before;
    EXPECT_EQ(found->scheme.before, before);
    EXPECT_EQ(found->scheme.NameOf(3, "x"), std::string(before) + "3.x");
  }
}

TEST(LayerNamesTest, FindsTheLayerInAName) {
  const LayerScheme scheme = *ParseLayerScheme("model.layers.{}.");
  EXPECT_EQ(scheme.Find("model.layers.17.mlp.weight")->layer, 17u);
  EXPECT_EQ(scheme.Find("model.layers.17.mlp.weight")->rest, "mlp.weight");
  for (const char* name : {"model.layers.weight", "model.layers.01.x", "model.layers.-1.x", "model.layers.1", "x",
                           "model.layers.1.", "model.layers.99999999999.x", "model.layers.70000.x"})
    EXPECT_FALSE(scheme.Find(name)) << name;
}

TEST(LayerNamesTest, UsersNameOthers) {
  const std::vector<std::string> names = Names("net.block_", 4, "/w");
  EXPECT_THAT(std::string(FindLayers(names, {}).status().message()), HasSubstr("--layer-names"));
  const std::string mine[] = {"net.block_{}/"};
  const auto found = FindLayers(names, mine);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->layers, 4u);
  EXPECT_EQ(FindLayersNamed(names, mine[0])->layers, 4u);
  EXPECT_EQ(FindLayersNamed(names, "model.layers.{}.").status().code(), StatusCode::kUnsupported);
  for (const char* bad : {"layers", "{}.", "a.{}", "a.{}.{}.", ""})
    EXPECT_EQ(ParseLayerScheme(bad).status().code(), StatusCode::kInvalidArgument) << bad;
}

TEST(LayerNamesTest, RefusesGapsAndTwoStacks) {
  EXPECT_EQ(FindLayers(std::vector<std::string>{"model.layers.0.x", "model.layers.2.x"}, {}).status().code(),
            StatusCode::kUnsupported);
  std::vector<std::string> both = Names("encoder.layers.", 2, ".x");
  for (const std::string& name : Names("decoder.layers.", 2, ".x")) both.push_back(name);
  EXPECT_THAT(std::string(FindLayers(both, {}).status().message()), HasSubstr("two stacks"));
  EXPECT_EQ(FindLayers({}, {}).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace modelstore
