#include "catalog/derive/layer_config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

namespace modelstore {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

// Layers 0, 2 and 3 of 4 are kept unless a test says otherwise.
class LayerConfigTest : public ::testing::Test {
 protected:
  LayerConfigTest() { Use("model.layers.{}."); }
  void Use(const std::string& scheme, std::vector<uint32_t> kept = {0, 2, 3}, uint32_t layers = 4) {
    names_ = {"lm_head.weight"};
    cut_ = {*ParseLayerScheme(scheme), layers, std::move(kept), {}};
    for (uint32_t layer = 0; layer < layers; ++layer) names_.push_back(cut_.scheme.NameOf(layer, "mlp.weight"));
    cut_.tensors = names_;
  }

  Result<Bytes> Rewrite(const std::string& text) { return ConfigWithLayers(AsBytes(text), cut_); }
  // What becomes of `members` in a configuration of four layers: "!" when it is refused.
  std::string Become(const std::string& members, const std::string& key = "") {
    const std::string text =
        "{\"num_hidden_layers\": " + std::to_string(cut_.layers) + (members.empty() ? "" : ", ") + members + "}";
    const Result<Bytes> bytes = Rewrite(text);
    if (!bytes.ok()) {
      EXPECT_EQ(bytes.status().code(), StatusCode::kUnsupported) << bytes.status().ToString();
      message_ = bytes.status().message();
      return "!";
    }
    const Json json = Json::parse(AsChars(*bytes));
    EXPECT_EQ(json["num_hidden_layers"], cut_.kept.size());
    Json rest = json;
    rest.erase("num_hidden_layers");
    return key.empty() ? rest.dump() : rest[key].dump();
  }
  void ExpectRefused(const std::string& members, const std::string& key) {
    EXPECT_EQ(Become(members), "!") << members;
    EXPECT_THAT(message_, HasSubstr(key)) << members;
  }
  void ExpectStays(const std::string& members) {
    EXPECT_EQ(Become(members), Json::parse("{" + members + "}").dump()) << members;
  }

  std::vector<std::string> names_;
  LayerCut cut_;
  std::string message_;
};

TEST_F(LayerConfigTest, KeepsTheOrderOfKeysAndWhatIsOfNoLayers) {
  const Result<Bytes> bytes =
      Rewrite(R"({"model_type": "x", "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"],
                                          "architectures": [1, 2, 3, 4], "vocab_size": 4})");
  ASSERT_TRUE(bytes.ok()) << bytes.status().ToString();
  EXPECT_EQ(AsChars(*bytes), R"({
  "model_type": "x",
  "num_hidden_layers": 3,
  "layer_types": [
    "a",
    "c",
    "d"
  ],
  "architectures": [
    1,
    2,
    3,
    4
  ],
  "vocab_size": 4
}
)");
  ExpectStays(R"("eos_token_id": [1, 2, 3, 4])");
  ExpectStays(R"("rope_scaling": {"short_factor": [1.0, 2.0, 3.0, 4.0], "factor": 4})");
  ExpectStays(
      R"("vision_config": {"num_hidden_layers": 4, "fullatt_block_indexes": [1, 3]}, "vision_feature_layer": -2)");
  ExpectStays(R"("num_nextn_predict_layers": 1, "layer_norm_eps": 1e-05, "layerdrop": 0.1, "pooler_num_fc_layers": 3)");
  ExpectStays(R"("id2label": {"0": "a", "1": "b", "2": "c", "3": "d"})");
  ExpectStays(R"("hidden_act": "silu", "some_layers": [], "use_layers": null)");
}

TEST_F(LayerConfigTest, ConfigurationsAsTheyArePublished) {
  ExpectStays(
      R"("quantization_config": {"quant_method": "gptq", "block_name_to_quantize": "model.layers", "group_size": 4,
                 "modules_in_block_to_quantize": [["self_attn.k_proj"], ["mlp.up_proj"], ["a"], ["b"]]})");
  ExpectStays(
      R"("layer_switch": 1, "hidden_size_per_layer_input": 256, "order_of_interleaved_layers": "local_attn_first")");
  ExpectStays(R"("embd_layer": {"audio_embd_layer": {"num_layers": 4, "some_layers": [1, 1]}, "embedding_cls": "x"})");
  ExpectStays(R"("ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {"num_heads": 4})");
  ExpectStays(R"("quantization_config": {"ignore": ["mtp.layers.1.mlp", "vision_tower.encoder.layers.1.fc1"]})");
  EXPECT_EQ(Become(R"("layer_types": ["a", "b", "c", "d"], "sliding_window_pattern": "LG")"),
            R"({"layer_types":["a","c","d"],"sliding_window_pattern":"LG"})");
}

TEST_F(LayerConfigTest, CountsOfEveryName) {
  for (const char* key : {"n_layer", "num_layers", "n_layers", "num_transformer_layers"}) {
    const Result<Bytes> bytes = Rewrite("{\"" + std::string(key) + "\": 4}");
    ASSERT_TRUE(bytes.ok()) << key;
    EXPECT_EQ(Json::parse(AsChars(*bytes))[key], 3) << key;
  }
  EXPECT_EQ(Become(R"("num_transformer_layers": 4)"), R"({"num_transformer_layers":3})");
}

TEST_F(LayerConfigTest, InnerConfigurations) {
  const auto rewrite = [&](const std::string& text) {
    const Result<Bytes> bytes = Rewrite(text);
    EXPECT_TRUE(bytes.ok()) << bytes.status().ToString();
    return bytes.ok() ? Json::parse(AsChars(*bytes)).dump() : "";
  };
  EXPECT_EQ(rewrite(R"({"text_config": {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]},
                        "quantization_config": {"ignore": ["model.layers.1.mlp", "model.layers.3.mlp"]}})"),
            R"({"text_config":{"num_hidden_layers":3,"layer_types":["a","c","d"]},)"
            R"("quantization_config":{"ignore":["model.layers.2.mlp"]}})");
  EXPECT_EQ(rewrite(R"({"thinker_config": {"text_config": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]}}})"),
            R"({"thinker_config":{"text_config":{"num_hidden_layers":3,"attn_layer_indices":[2]}}})");
  // The outer count is of something else.
  EXPECT_EQ(rewrite(R"({"num_hidden_layers": 7, "mlp_only_layers": [1], "llm_config": {"num_hidden_layers": 4}})"),
            R"({"num_hidden_layers":7,"mlp_only_layers":[1],"llm_config":{"num_hidden_layers":3}})");
}

TEST_F(LayerConfigTest, EncodersAndDecodersHaveTheirOwnCounts) {
  Use("model.decoder.layers.{}.");
  const std::string text =
      R"({"is_encoder_decoder": true, "encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4})";
  Result<Bytes> bytes = Rewrite(text);
  ASSERT_TRUE(bytes.ok()) << bytes.status().ToString();
  EXPECT_EQ(Json::parse(AsChars(*bytes)).dump(),
            R"({"is_encoder_decoder":true,"encoder_layers":4,"decoder_layers":3,"num_hidden_layers":4})");
  Use("model.encoder.layers.{}.");
  bytes = Rewrite(text);
  ASSERT_TRUE(bytes.ok()) << bytes.status().ToString();
  EXPECT_EQ(Json::parse(AsChars(*bytes)).dump(),
            R"({"is_encoder_decoder":true,"encoder_layers":3,"decoder_layers":4,"num_hidden_layers":3})");
}

TEST_F(LayerConfigTest, ListsWithAnEntryForEachLayer) {
  for (const char* key : {"intermediate_size", "num_query_heads", "num_kv_heads", "ffn_multipliers",
                          "activation_sparsity_pattern", "moe_layer_freq", "no_rope_layers", "attention_layers",
                          "layers_block_type", "block_configs", "attn_type_list", "attention_window"})
    EXPECT_EQ(Become("\"" + std::string(key) + "\": [7, 1, 1, 5]", key), "[7,1,5]") << key;
  EXPECT_EQ(Become(R"("block_configs": [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}])"),
            R"({"block_configs":[{"a":1},{"a":3},{"a":4}]})");
  EXPECT_EQ(Become(R"("hybrid_override_pattern": "M-*E")"), R"({"hybrid_override_pattern":"M*E"})");
  EXPECT_EQ(Become(R"("some_pattern": "LGLG")"), R"({"some_pattern":"LLG"})");
  EXPECT_EQ(Become(R"("layer_settings": {"0": 7, "1": 8, "3": 9})"), R"({"layer_settings":{"0":7,"2":9}})");
  // Patterns that are repeated for all layers.
  EXPECT_EQ(Become(R"("block_types": ["r", "r", "a"])"), R"({"block_types":["r","a","r"]})");
  EXPECT_EQ(Become(R"("num_layers": 4, "attention_types": [[["g", "l"], 2]])"),
            R"({"num_layers":3,"attention_types":[[["g","g","l"],1]]})");
  Use("model.layers.{}.", {0, 1, 2, 6, 7, 8}, 9);
  ExpectStays(R"("block_types": ["r", "r", "a"])");
}

TEST_F(LayerConfigTest, ListsOfLayers) {
  for (const char* key : {"mlp_only_layers", "attn_layer_indices", "hybrid_layer_ids", "full_attn_idxs",
                          "sliding_window_layers", "global_attn_idx", "cross_attention_layers", "layer_ids"}) {
    EXPECT_EQ(Become("\"" + std::string(key) + "\": [1, 3]", key), "[2]") << key;
    EXPECT_EQ(Become("\"" + std::string(key) + "\": [0]", key), "[0]") << key;
    EXPECT_EQ(Become("\"" + std::string(key) + "\": [1]", key), "[]") << key;
  }
  EXPECT_EQ(Become(R"("attn_layer_indices": [0, 1, 2, 3])", "attn_layer_indices"), "[0,1,2]");
  EXPECT_EQ(Become(R"("moe_layers_enum": "1,3")"), R"({"moe_layers_enum":"2"})");
  EXPECT_EQ(Become(R"("moe_layers_enum": "0, 2, 3")"), R"({"moe_layers_enum":"0, 1, 2"})");
}

TEST_F(LayerConfigTest, NumbersThatCountLayers) {
  EXPECT_EQ(Become(R"("max_window_layers": 3, "first_k_dense_replace": 1, "num_kv_shared_layers": 3)"),
            R"({"max_window_layers":2,"first_k_dense_replace":1,"num_kv_shared_layers":2})");
  EXPECT_EQ(Become(R"("moe_layer_start_index": 2, "moe_layer_end_index": 2)"),
            R"({"moe_layer_start_index":1,"moe_layer_end_index":1})");
  ExpectStays(R"("moe_layer_end_index": -1)");
  Use("model.layers.{}.", {0}, 4);
  EXPECT_EQ(Become(R"("scale_depth": 1.5)"), R"({"scale_depth":0.75})");
}

TEST_F(LayerConfigTest, NamesOfLayersInQuantizationSettings) {
  for (const char* key :
       {"ignored_layers", "modules_to_not_convert", "ignore", "llm_int8_skip_modules", "exclude", "anything"})
    EXPECT_EQ(Become("\"quantization_config\": {\"" + std::string(key) +
                     R"(": ["model.layers.0.a", "model.layers.1.a", "model.layers.3.a", "lm_head", "x"]})"),
              "{\"quantization_config\":{\"" + std::string(key) +
                  R"(":["model.layers.0.a","model.layers.2.a","lm_head","x"]}})");
  EXPECT_EQ(
      Become(R"("quantization_config": {"config_groups": {"g": {"targets": ["re:.*layers\\.(1|2)\\.mlp", "Linear"],
                      "weights": {"block_structure": [128, 128]}}}, "weight_block_size": [128, 128]})"),
      R"({"quantization_config":{"config_groups":{"g":{"targets":["re:.*layers\\.1\\.mlp","Linear"],)"
      R"("weights":{"block_structure":[128,128]}}},"weight_block_size":[128,128]}})");
  // Also as keys, and as many names as there are layers.
  EXPECT_EQ(
      Become(
          R"("quantization_config": {"extra_config": {"model.layers.1.a": {"bits": 8}, "model.layers.2.a": {"bits": 4}}})"),
      R"({"quantization_config":{"extra_config":{"model.layers.1.a":{"bits":4}}}})");
  ExpectStays(R"("quantization_config": {"ignored_layers": ["a", "b", "c", "d"], "skip": ["a", "b", "c", "d"]})");
  ExpectRefused(R"("quantization_config": {"ignore": ["re:model\\.layers\\.(?!1).*"]})", "quantization_config.ignore");
  ExpectRefused(R"("quantization_config": {"only": "model.layers.1.a"})", "quantization_config.only");
}

// GPTQModel's keys are regular expressions behind "+:" or "-:".
TEST_F(LayerConfigTest, SettingsByPatternsOfLayerNumbersAlone) {
  const std::string dynamic = R"("quantization_config": {"dynamic": {"+:.*\\.3\\..*gate.*": {"bits": 8}, )"
                              R"("-:.*\\.1\\..*": {}, ".*\\.(?:2|3)\\..*": {}}})";
  EXPECT_EQ(Become(dynamic), R"({"quantization_config":{"dynamic":{"+:.*\\.2\\..*gate.*":{"bits":8},)"
                             R"(".*\\.(?:1|2)\\..*":{}}}})");
  // It may be the expert's number, too.
  names_.push_back("model.layers.0.mlp.experts.3.gate_proj.weight");
  cut_.tensors = names_;
  ExpectRefused(dynamic, "quantization_config.dynamic.+:");
  ExpectRefused(R"("quantization_config": {"dynamic": {"-:.*\\.(?:1|2)\\..*": {}}})", "quantization_config.dynamic.-:");
}

TEST_F(LayerConfigTest, ListsOfListsOfLayers) {
  EXPECT_EQ(Become(R"("kv_reuse_group": [[0, 1], [2, 3]])"), R"({"kv_reuse_group":[[1,2]]})");
  EXPECT_EQ(Become(R"("kv_reuse_group": [[0, 1, 2, 3]])"), R"({"kv_reuse_group":[[0,1,2]]})");
  // What the others reuse would be missing.
  ExpectRefused(R"("kv_reuse_group": [[1, 2]])", "'kv_reuse_group'");
  ExpectRefused(R"("kv_reuse_group": [1, 2])", "'kv_reuse_group'");
  ExpectRefused(R"("kv_reuse_group": [[2, 4]])", "'kv_reuse_group'");
  ExpectRefused(R"("kv_sharing": [[0, 1], [2, 3]])", "'kv_sharing'");
  ExpectRefused(R"("attn_config": {"shared": [[[0, 1]], [2]]})", "'attn_config.shared'");
  ExpectStays(R"("grid": [[336, 672], [672, 336]], "bad_words_ids": [[1, 2]], "ranges": [[0.5, 1.0]], "none": [[]])");
  ExpectStays(R"("quantization_config": {"sizes": [[1, 2]]})");
}

TEST_F(LayerConfigTest, RefusesByNameWhatItCannotDecide) {
  ExpectRefused(R"("rope": [1, 2, 3, 4])", "'rope'");
  ExpectRefused(R"("kinds": ["a", "b", "c", "d"])", "'kinds'");
  ExpectRefused(R"("conv_dim": {"0": 1, "1": 2, "2": 3, "3": 4})", "'conv_dim'");
  ExpectRefused(R"("some_layers": [0, 1, 2, 3])", "'some_layers'");
  ExpectRefused(R"("some_layers": [3, 1])", "'some_layers'");
  ExpectRefused(R"("some_layers": [1, 4])", "'some_layers'");
  ExpectRefused(R"("some_layers": [-1, -2])", "'some_layers'");
  ExpectRefused(R"("layer_groups": [[0, 1], [2, 3]])", "'layer_groups'");
  ExpectRefused(R"("layer_types": ["a", "b", "c"])", "'layer_types'");
  ExpectRefused(R"("hybrid_override_pattern": "M-*")", "'hybrid_override_pattern'");
  ExpectRefused(R"("layer_settings": {"0": 7, "4": 8})", "'layer_settings'");
  ExpectRefused(R"("num_global_layers": 2)", "'num_global_layers'");
  ExpectRefused(R"("moe_layers_enum": "3,1")", "'moe_layers_enum'");
  ExpectRefused(R"("attn_config": {"some_layers": [1, 1]})", "'attn_config.some_layers'");
  ExpectRefused(R"("hybrid_layer_ids": [1, 3], "num_mem_blocks": 2)", "num_mem_blocks");
}

// Layers 0, 2, 3 of 4: the second would be of another kind.
TEST_F(LayerConfigTest, RefusesToShiftKindsThatFollowFromNumbers) {
  for (const char* members :
       {R"("sliding_window_pattern": 2)", R"("decoder_sparse_step": 2)", R"("model_type": "gemma2")",
        R"("global_attn_every_n_layers": 3)", R"("layer_group_size": 2)", R"("model_type": "diffllama")",
        R"("scale_attn_by_inverse_layer_idx": true)", R"("sliding_window_pattern": "LG")"})
    EXPECT_EQ(Become(members), "!") << members;
  for (const char* members :
       {R"("sliding_window_pattern": 2, "layer_types": [1, 2, 3, 4])", R"("decoder_sparse_step": 1)",
        R"("model_type": "gemma2", "layer_types": [1, 2, 3, 4])", R"("scale_attn_by_inverse_layer_idx": false)"})
    EXPECT_NE(Become(members), "!") << members;
  for (const char* key : {"mamba_step", "attention_period", "moe_interval", "expert_freq", "sparse_frequency",
                          "cross_attn_every", "cross_attn_every_n", "attn_stride", "encoder_sparse_step"}) {
    ExpectRefused("\"" + std::string(key) + "\": 2", key);
    for (const char* value : {"0", "1", "-1", "null"}) ExpectStays("\"" + std::string(key) + "\": " + value);
  }
  ExpectRefused(R"("ssm_cfg": {"mamba_step": 2})", "'ssm_cfg.mamba_step'");
  ExpectStays(R"("conv_stride": 2, "mamba_time_step_rank": 2, "time_step": 2, "moe_router_steps": 2, "log_freq": 2)");
  Use("model.layers.{}.", {2, 3});
  EXPECT_NE(Become(R"("model_type": "gemma2")"), "!");
  ExpectStays(R"("mamba_step": 2)");
  // With so few layers PLaMo-2 has attention in the last one.
  ExpectRefused(R"("mamba_step": 4)", "mamba_step");
  Use("model.layers.{}.", {0, 1});
  ExpectRefused(R"("mamba_step": 4)", "mamba_step");
}

TEST_F(LayerConfigTest, SaysThatTheLastLayersPredictMoreTokens) {
  for (const char* config : {R"({"num_hidden_layers": 3, "num_nextn_predict_layers": 1})",
                             R"({"text_config": {"num_hidden_layers": 2, "num_nextn_predict_layers": 2}})"}) {
    const Status status = Rewrite(config).status();
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_THAT(std::string(status.message()), HasSubstr("multi-token prediction (num_nextn_predict_layers)"))
        << config;
  }
  EXPECT_THAT(std::string(Rewrite(R"({"num_hidden_layers": 2, "num_nextn_predict_layers": 1})").status().message()),
              ::testing::Not(HasSubstr("multi-token")));
}

TEST_F(LayerConfigTest, RefusesConfigurationsOfOtherModels) {
  for (const char* config : {R"({"num_hidden_layers": 5})", "{}", R"({"num_hidden_layers": "4"})", "", "[]", "{",
                             "\"x\"", R"({"num_hidden_layers": 4,})", R"({"num_hidden_layers": NaN})"})
    EXPECT_EQ(Rewrite(config).status().code(), StatusCode::kUnsupported) << config;
  EXPECT_THAT(std::string(Rewrite(R"({"num_hidden_layers": 4,})").status().message()), HasSubstr("byte 25 of 25"));
}

TEST_F(LayerConfigTest, SurvivesHostileConfigurations) {
  const std::string deep =
      R"({"num_hidden_layers": 4, "x": )" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(Rewrite(deep).status().code(), StatusCode::kUnsupported);
  EXPECT_TRUE(Rewrite(R"({"num_hidden_layers": 4, "x": ")" + std::string(1000, '[') + R"(\""})").ok());
  for (const char* types : {"[[[], 18446744073709551615]]", R"([[["a"], 18446744073709551615], 3])"})
    EXPECT_EQ(Become("\"attention_types\": " + std::string(types), "attention_types"), Json::parse(types).dump());
  ExpectRefused(R"("layer_settings": {"99999999999999999999999": 7})", "layer_settings");
  ExpectStays(R"("max_window_layers": 0, "num_kv_shared_layers": 0)");
}

TEST_F(LayerConfigTest, SettingsBesideIt) {
  EXPECT_TRUE(IsLayerSettings("generation_config.json"));
  EXPECT_FALSE(IsLayerSettings("tokenizer.json"));
  const auto rewrite = [&](const char* file, const std::string& text) {
    const Result<Bytes> bytes = SettingsWithLayers(file, AsBytes(text), cut_);
    return bytes.ok() ? std::string(AsChars(*bytes)) : "!";
  };
  const auto dumped = [&](const char* file, const std::string& text) {
    return Json::parse(rewrite(file, text)).dump();
  };
  // As it is, byte for byte, when nothing changes.
  const std::string same = "{\"eos_token_id\":[1,2,3,4],  \"top_k\":4, \"stop\": [\"a\", \"b\", \"c\", \"d\"]}";
  EXPECT_EQ(rewrite("generation_config.json", same), same);
  EXPECT_EQ(dumped("generation_config.json", R"({"assistant_early_exit": 3, "dola_layers": [1, 2]})"),
            R"({"assistant_early_exit":2,"dola_layers":[1]})");
  EXPECT_EQ(dumped("adapter_config.json", R"({"layers_to_transform": [1, 2, 3], "layers_pattern": "layers",
                    "rank_pattern": {"model.layers.1.q": 8, "model.layers.3.q": 4}, "target_modules": ["q", "k", "v", "o"]})"),
            R"({"layers_to_transform":[1,2],"layers_pattern":"layers","rank_pattern":{"model.layers.2.q":4},)"
            R"("target_modules":["q","k","v","o"]})");
  EXPECT_EQ(dumped("adapter_config.json", R"({"layers_to_transform": 2})"), R"({"layers_to_transform":1})");
  EXPECT_EQ(rewrite("adapter_config.json", R"({"layers_to_transform": 1})"), "!");
  EXPECT_EQ(rewrite("adapter_config.json", R"({"layer_replication": [[0, 3], [1, 4]]})"), "!");
  Use("model.decoder.layers.{}.");
  EXPECT_EQ(dumped("generation_config.json", R"({"alignment_heads": [[1, 0], [2, 3], [3, 1]]})"),
            R"({"alignment_heads":[[1,3],[2,1]]})");
  EXPECT_EQ(rewrite("generation_config.json", R"({"alignment_heads": [[1]]})"), "!");
  Use("model.layers.{}.");
  EXPECT_EQ(dumped("params.json", R"({"n_layers": 4, "dim": 4})"), R"({"n_layers":3,"dim":4})");
  EXPECT_EQ(dumped("hf_quant_config.json", R"({"quantization": {"exclude_modules": ["model.layers.3.mlp*"]}})"),
            R"({"quantization":{"exclude_modules":["model.layers.2.mlp*"]}})");
}

}  // namespace
}  // namespace modelstore
