#include "catalog/derive/layer_mentions.h"

#include <gmock/gmock.h>

namespace modelstore {
namespace {

using ::testing::HasSubstr;

// Twelve layers of which 0, 2, 3, 5 and 11 are kept, beside a vision tower whose stack has another name.
class LayerMentionsTest : public ::testing::Test {
 protected:
  LayerMentionsTest() { Use("model.layers.{}.", {"vision_tower.encoder.layers.0.fc1.weight", "visual.blocks.3.w"}); }

  void Use(const std::string& scheme, std::vector<std::string> others) {
    names_ = std::move(others);
    cut_ = {*ParseLayerScheme(scheme), 12, {0, 2, 3, 5, 11}, {}};
    for (uint32_t layer = 0; layer < 12; ++layer) names_.push_back(cut_.scheme.NameOf(layer, "mlp.weight"));
    cut_.tensors = names_;
  }
  // "-" for what is dropped, "!" for what is refused.
  std::string Renumber(const std::string& text) {
    LayerMentions mentions(cut_);
    const auto renumbered = mentions.Renumber(text);
    if (!renumbered.ok()) {
      EXPECT_EQ(renumbered.status().code(), StatusCode::kUnsupported) << text;
      return "!";
    }
    return *renumbered ? **renumbered : "-";
  }

  std::vector<std::string> names_;
  LayerCut cut_;
};

TEST_F(LayerMentionsTest, NamesOfModules) {
  for (const auto& [text, expected] : std::initializer_list<std::pair<const char*, const char*>>{
           {"model.layers.3.self_attn.q_proj", "model.layers.2.self_attn.q_proj"},
           {"model.layers.11", "model.layers.4"},
           {"model.layers.1.mlp", "-"},
           {"language_model.model.layers.5.mlp", "language_model.model.layers.3.mlp"},
           {"transformer.layers.5.mlp", "transformer.layers.3.mlp"},
           {"model.layers.2.mlp.experts.7.w1", "model.layers.1.mlp.experts.7.w1"},
           {"model.layers.12.eh_proj", "model.layers.12.eh_proj"},  // there is none
           {"lm_head", "lm_head"},
           {"model.layers", "model.layers"},
           {"mylayers.3.x", "mylayers.3.x"},
           {"a/layers.3.x", "a/layers.3.x"},
           {"", ""},
           // Of other stacks, also under another beginning.
           {"vision_tower.encoder.layers.0.fc1", "vision_tower.encoder.layers.0.fc1"},
           {"visual.blocks.3.attn", "visual.blocks.3.attn"},
           // "layers" alone are both; "h" is none that there is; no tensor is of "decoder.layers".
           {"layers.3.mlp", "!"},
           {"transformer.h.3.mlp", "!"},
           {"decoder.layers.3.mlp", "!"}})
    EXPECT_EQ(Renumber(text), expected) << text;
}

TEST_F(LayerMentionsTest, NumbersThatStandAlone) {
  Use("model.layers.{}.", {"lm_head.weight"});
  const std::initializer_list<std::pair<const char*, const char*>> texts = {
      {R"(+:.*\.5\..*gate.*)", R"(+:.*\.3\..*gate.*)"},
      {R"(-:.*\.4\..*)", "-"},
      {R"(.*\.(?:4|5)\..*)", R"(.*\.3\..*)"},
      {R"(re:\.3$)", R"(re:\.2$)"},
      {R"(model\.\w+\.1[01]\.mlp)", R"(model\.\w+\.4\.mlp)"},
      {"*.11.mlp", "*.4.mlp"},
      {R"(.*[.]3[.]mlp)", R"(.*[.]2[.]mlp)"},
      {R"(.*\.(?!3\.).*)", "!"},
      {R"(.*\.(5|q)\..*)", "!"},
      {R"(.*\.5\b.*)", "!"}};
  for (const auto& [text, expected] : texts) EXPECT_EQ(Renumber(text), expected) << text;
  const std::initializer_list<const char*> others = {
      R"(.*\.\d+\.mlp)", R"(.*\.[^.]+\.mlp)", R"(.*\.0\..*)", R"(.*\.60\..*)",  R"(.*\.(w1|w2)\..*)", R"(.*\.w1)",
      R"(-:.*down.*)",   R"(.*\.[a-z]+)",     "2.5.0+cu118",  R"(conv\.3\..*)", R"(vision.*\.3\..*)", "(v 4.5.1)"};
  for (const char* text : others) EXPECT_EQ(Renumber(text), text);
  std::string nested;
  for (size_t i = 0; i < 100'000; ++i) nested += "\\.(";
  EXPECT_EQ(Renumber(nested), "!");
  // With experts they may be the experts'.
  Use("model.layers.{}.", {"model.layers.0.mlp.experts.5.w1.weight"});
  for (const auto& [text, expected] : texts) EXPECT_EQ(Renumber(text), "!") << text;
  for (const char* text : others) EXPECT_EQ(Renumber(text), text);
  EXPECT_EQ(Renumber(R"(.*layers\.5\..*\.4\..*)"), R"(.*layers\.3\..*\.4\..*)");
  EXPECT_EQ(Renumber(R"(.*layers\.5\..*|.*\.4\..*)"), "!");
}

TEST_F(LayerMentionsTest, TheEndOfANameIsEnoughWithOneStack) {
  Use("model.layers.{}.", {"lm_head.weight", "base_model.model.model.layers.3.mlp.lora_A.weight"});
  EXPECT_EQ(Renumber("layers.3.mlp"), "layers.2.mlp");
  EXPECT_EQ(Renumber("layers.4.mlp"), "-");
  EXPECT_EQ(Renumber("re:.*layers\\.3\\.mlp"), "re:.*layers\\.2\\.mlp");
  Use("transformer.h.{}.", {});
  EXPECT_EQ(Renumber("h.3.attn"), "h.2.attn");
  EXPECT_EQ(Renumber("transformer.h.1.attn"), "-");
}

TEST_F(LayerMentionsTest, Patterns) {
  for (const auto& [text, expected] : std::initializer_list<std::pair<const char*, const char*>>{
           {"re:model\\.layers\\.3\\.mlp.*", "re:model\\.layers\\.2\\.mlp.*"},
           {"re:model.layers.3.mlp.*", "re:model.layers.2.mlp.*"},
           {"re:^model\\.layers\\.1\\.mlp$", "-"},
           {"re:model[.]layers[.]11$", "re:model[.]layers[.]4$"},
           {"re:model\\.layers\\.(3|4|5)\\.mlp", "re:model\\.layers\\.(?:2|3)\\.mlp"},
           {"re:model\\.layers\\.(?:1|4)\\.mlp", "-"},
           {"re:model\\.layers\\.[0-3]\\.mlp", "re:model\\.layers\\.(?:0|1|2)\\.mlp"},
           {"re:model\\.layers\\.1[0-9]\\.mlp", "re:model\\.layers\\.4\\.mlp"},
           // Any layer.
           {"re:model\\.layers\\.\\d+\\.mlp", "re:model\\.layers\\.\\d+\\.mlp"},
           {"re:model\\.layers\\.[0-9]+\\.mlp", "re:model\\.layers\\.[0-9]+\\.mlp"},
           {"re:model\\.layers\\.[^.]+\\.mlp", "re:model\\.layers\\.[^.]+\\.mlp"},
           {"re:.*layers.*mlp", "re:.*layers.*mlp"},
           {"re:.*\\.layers\\..*\\.mlp", "re:.*\\.layers\\..*\\.mlp"},
           {"model.layers.*.self_attn", "model.layers.*.self_attn"},
           {"re:.*lm_head", "re:.*lm_head"},
           // GPTQ's keys, and what begins with a number.
           {"-:model\\.layers\\.5\\..*", "-:model\\.layers\\.3\\..*"},
           {"re:model\\.layers\\.1.*", "re:model\\.layers\\.4.*"},
           {"re:model\\.layers\\.[23].*", "re:model\\.layers\\.(?:1|2)(?![0-9]).*"},
           {"model.layers.1*", "model.layers.4*"},
           {"model.layers.2.mlp*", "model.layers.1.mlp*"},
           // Also of the vision tower; in forms that are not known; one of several that is dropped.
           {"re:.*layers\\.3\\.mlp", "!"},
           {"re:model\\.layers\\.(?!3)\\d+\\.mlp", "!"},
           {"re:model\\.layers\\.3{2}\\.mlp", "!"},
           {"re:model\\.layers\\.(3\\.mlp|5\\.mlp)", "!"},
           {"model.layers.[23]*", "!"},
           {"re:model\\.layers\\.3*\\.mlp", "!"},
           {"re:(model\\.layers\\.3\\.a|model\\.layers\\.4\\.a)", "!"},
           {"re:(model\\.layers\\.3\\.a|model\\.layers\\.5\\.a)",
            "re:(model\\.layers\\.2\\.a|model\\.layers\\.3\\.a)"}})
    EXPECT_EQ(Renumber(text), expected) << text;
}

// What a stored model says takes no time, whatever it says.
TEST_F(LayerMentionsTest, HostilePatterns) {
  std::string many = "re:model\\.layers\\.";
  for (int i = 0; i < 100'000; ++i) many += "\\d*";
  EXPECT_EQ(Renumber(many + "\\.x"), many + "\\.x");
  for (const char* text : {"re:model.layers.(", "re:model.layers.[", "re:model.layers.[9-0].", "re:model.layers.()",
                           "re:model.layers.(((3)))", "re:model.layers.\\", "re:model.layers.(3|)"})
    EXPECT_EQ(Renumber(text), "!") << text;
  EXPECT_EQ(Renumber("model.layers.99999999999999999999"), "model.layers.99999999999999999999");
  EXPECT_EQ(Renumber("model.layers."), "model.layers.");
}

TEST_F(LayerMentionsTest, RefusalsQuoteTheText) {
  LayerMentions mentions(cut_);
  EXPECT_THAT(std::string(mentions.Renumber("decoder.layers.3.mlp").status().message()),
              HasSubstr("'decoder.layers.3.mlp'"));
}

}  // namespace
}  // namespace modelstore
