#include "catalog/derive/slice_layout.h"

#include <gmock/gmock.h>

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kConfig =
    R"({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-05})";

std::vector<std::string> Names(uint32_t layers) {
  std::vector<std::string> names = {"model.embed_tokens.weight", "model.norm.weight"};
  for (uint32_t layer = 0; layer < layers; ++layer) {
    for (const char* rest :
         {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      names.push_back("model.layers." + std::to_string(layer) + "." + rest + ".weight");
  }
  return names;
}

Result<SliceLayout> LayOut(const std::string& config, const std::vector<std::string>& names) {
  return LayOutSlices(AsBytes(config), names);
}

TEST(SliceLayoutTest, ReadsAndWritesInOrder) {
  const auto layout = LayOut(kConfig, Names(2));
  ASSERT_TRUE(layout.ok()) << layout.status().ToString();
  ASSERT_EQ(layout->steps.size(), 4u);
  EXPECT_EQ(layout->steps[2].norm, "model.layers.1.input_layernorm.weight");
  EXPECT_THAT(layout->steps[2].readers,
              ElementsAre("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight",
                          "model.layers.1.self_attn.v_proj.weight"));
  EXPECT_THAT(layout->steps[3].writers, ElementsAre("model.layers.1.mlp.down_proj.weight"));
  EXPECT_TRUE(layout->is_tied);
  EXPECT_EQ(layout->head, "model.embed_tokens.weight");
  EXPECT_EQ(layout->hidden, 64u);
}

TEST(SliceLayoutTest, KnowsBiasesAndUntiedHeads) {
  std::vector<std::string> names = Names(1);
  for (const char* more :
       {"lm_head.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.o_proj.bias"})
    names.push_back(more);
  const auto layout = LayOut(kConfig, names);
  ASSERT_TRUE(layout.ok()) << layout.status().ToString();
  EXPECT_FALSE(layout->is_tied);
  EXPECT_EQ(layout->head, "lm_head.weight");
  EXPECT_THAT(layout->steps[0].writers,
              ElementsAre("model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj.bias"));
}

constexpr const char* kOptConfig = R"({"model_type": "opt", "hidden_size": 64, "num_attention_heads": 4})";

std::vector<std::string> OptNames() {
  std::vector<std::string> names = {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"};
  const auto add = [&](const std::string& name) {
    names.push_back(name + ".weight");
    names.push_back(name + ".bias");
  };
  for (const char* rest : {"self_attn_layer_norm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                           "self_attn.out_proj", "final_layer_norm", "fc1", "fc2"})
    add(std::string("model.decoder.layers.0.") + rest);
  add("model.decoder.final_layer_norm");
  return names;
}

TEST(SliceLayoutTest, KnowsLayerNorms) {
  const auto layout = LayOut(kOptConfig, OptNames());
  ASSERT_TRUE(layout.ok()) << layout.status().ToString();
  EXPECT_TRUE(layout->has_layer_norms);
  EXPECT_THAT(layout->added, ElementsAre("model.decoder.embed_positions.weight"));
  ASSERT_EQ(layout->steps.size(), 2u);
  EXPECT_EQ(layout->steps[1].norm_bias, "model.decoder.layers.0.final_layer_norm.bias");
  EXPECT_THAT(layout->steps[1].readers_biases, ElementsAre("model.decoder.layers.0.fc1.bias"));
  EXPECT_THAT(layout->steps[1].writers,
              ElementsAre("model.decoder.layers.0.fc2.weight", "model.decoder.layers.0.fc2.bias"));
  EXPECT_THAT(std::string(AsChars(*ConfigSliced(AsBytes(std::string(kOptConfig)), *layout, 32, /*one_basis=*/false))),
              HasSubstr("modeling_sliced.SlicedOPTForCausalLM"));

  std::vector<std::string> without_bias = OptNames();
  std::erase(without_bias, "model.decoder.layers.0.fc1.bias");
  EXPECT_THAT(std::string(LayOut(kOptConfig, without_bias).status().message()),
              HasSubstr("'model.decoder.layers.0.fc1.bias'"));
  EXPECT_THAT(std::string(LayOut(R"({"model_type": "opt", "hidden_size": 64, "num_attention_heads": 4,
                                     "do_layer_norm_before": false})",
                                 OptNames())
                              .status()
                              .message()),
              HasSubstr("do_layer_norm_before"));
  std::vector<std::string> projected = OptNames();
  projected.push_back("model.decoder.project_in.weight");
  EXPECT_THAT(std::string(LayOut(kOptConfig, projected).status().message()),
              HasSubstr("project_in.weight' is no tensor"));
}

TEST(SliceLayoutTest, RefusesOtherModels) {
  const auto refusal = [](const std::string& config, const std::vector<std::string>& names) {
    const auto layout = LayOut(config, names);
    EXPECT_EQ(layout.status().code(), StatusCode::kUnsupported);
    return std::string(layout.status().message());
  };
  EXPECT_THAT(refusal(R"({"model_type": "gemma", "hidden_size": 64, "num_attention_heads": 4})", Names(1)),
              HasSubstr("'gemma' cannot be sliced; those of llama"));
  EXPECT_THAT(refusal(R"({"model_type": "llama", "num_attention_heads": 4})", Names(1)), HasSubstr("hidden_size"));
  std::vector<std::string> names = Names(1);
  names.push_back("model.layers.0.mlp.experts.0.weight");
  EXPECT_THAT(refusal(kConfig, names), HasSubstr("'model.layers.0.mlp.experts.0.weight' is no tensor"));
  names = Names(1);
  std::erase(names, "model.layers.0.mlp.up_proj.weight");
  EXPECT_THAT(refusal(kConfig, names), HasSubstr("has a tensor 'model.layers.0.mlp.up_proj.weight'"));
  EXPECT_EQ(LayOut("[]", Names(1)).status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(
      refusal(R"({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "sliced_size": 8})", Names(1)),
      HasSubstr("sliced already"));
}

TEST(SliceLayoutTest, ConfigurationsSayHowToLoad) {
  const SliceLayout layout = *LayOut(kConfig, Names(1));
  const auto text = [&](bool one_basis) {
    return std::string(AsChars(*ConfigSliced(AsBytes(std::string(kConfig)), layout, 32, one_basis)));
  };
  EXPECT_THAT(text(true), HasSubstr("\"hidden_size\": 32"));
  EXPECT_THAT(text(true), HasSubstr("\"head_dim\": 16"));
  EXPECT_THAT(text(true), HasSubstr("\"rms_norm_eps\": 2e-05"));
  EXPECT_THAT(text(false), HasSubstr("\"hidden_size\": 64"));
  EXPECT_THAT(text(false), HasSubstr("\"sliced_size\": 32"));
  EXPECT_THAT(text(false), HasSubstr("modeling_sliced.SlicedLlamaForCausalLM"));
  EXPECT_THAT(std::string(ModelingSource()), HasSubstr("SlicedLlamaForCausalLM = sliced(LlamaForCausalLM)"));
}

}  // namespace
}  // namespace modelstore
