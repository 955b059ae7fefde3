#include "catalog/derive/slice_layout.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "catalog/derive/checkpoint_files.h"
#include "catalog/derive/layer_names.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHead = "lm_head.weight";

struct StepNames {
  const char* norm;
  std::vector<const char*> readers, writers;
  const char* shortcut;
};
// Names of a family of architectures; of a layer's tensors behind the layer's number. A norm's bias and a reader's are
// named as their weights.
struct Family {
  const char *layers, *embedding;
  std::vector<const char*> added;
  const char* final_norm;
  std::vector<StepNames> steps;
  // Behind what reads the stream, or behind the last step: slicing leaves them as they are.
  std::vector<const char*> inside, outside;
  bool has_layer_norms;
};
const Family kLlamaFamily = {
    "model.layers.{}.",
    "model.embed_tokens.weight",
    {},
    "model.norm.weight",
    {{"input_layernorm.weight",
      {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
      {"self_attn.o_proj.weight", "self_attn.o_proj.bias"},
      "attn_shortcut.weight"},
     {"post_attention_layernorm.weight",
      {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
      {"mlp.down_proj.weight", "mlp.down_proj.bias"},
      "mlp_shortcut.weight"}},
    {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias", "self_attn.q_norm.weight",
     "self_attn.k_norm.weight", "self_attn.rotary_emb.inv_freq", "mlp.gate_proj.bias", "mlp.up_proj.bias"},
    {},
    false};
const Family kOptFamily = {
    "model.decoder.layers.{}.",
    "model.decoder.embed_tokens.weight",
    {"model.decoder.embed_positions.weight"},
    "model.decoder.final_layer_norm.weight",
    {{"self_attn_layer_norm.weight",
      {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
      {"self_attn.out_proj.weight", "self_attn.out_proj.bias"},
      "attn_shortcut.weight"},
     {"final_layer_norm.weight", {"fc1.weight"}, {"fc2.weight", "fc2.bias"}, "mlp_shortcut.weight"}},
    {},
    {"model.decoder.final_layer_norm.bias"},
    true};
// Those that can be sliced, by model_type; the classes are those of the modelling file.
struct Architecture {
  std::string class_name;
  const Family* family;
};
const std::map<std::string, Architecture> kArchitectures = {{"llama", {"SlicedLlamaForCausalLM", &kLlamaFamily}},
                                                            {"mistral", {"SlicedMistralForCausalLM", &kLlamaFamily}},
                                                            {"opt", {"SlicedOPTForCausalLM", &kOptFamily}},
                                                            {"qwen2", {"SlicedQwen2ForCausalLM", &kLlamaFamily}},
                                                            {"qwen3", {"SlicedQwen3ForCausalLM", &kLlamaFamily}}};

std::string BiasOf(const std::string& weight) {
  constexpr std::string_view kWeight = "weight";
  return weight.substr(0, weight.size() - kWeight.size()) + "bias";
}

Result<Json> Parse(ByteSpan config) {
  RETURN_IF_ERROR(CheckNesting(config, "config.json"));
  Json json = TryParseOrderedJson(AsChars(config));
  if (!json.is_object()) return NoJsonObject(config, "config.json");
  return json;
}

Result<uint64_t> Count(const Json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end() || !it->is_number_unsigned() || *it == 0 || *it > UINT32_MAX)
    return Unsupported("config.json has no usable " + std::string(key));
  return it->get<uint64_t>();
}

// OPT's forms in which the stream is not what reaches a norm, or not only that, or what is sliced is not there. Errors:
// Unsupported.
Status CheckForm(const Json& config) {
  const auto is = [&](const char* key, bool value) { return config.contains(key) && config[key] == Json(value); };
  for (const char* key : {"enable_bias", "layer_norm_elementwise_affine"}) {
    if (is(key, false)) return Unsupported("a model without what " + std::string(key) + " gives cannot be sliced");
  }
  if (is("do_layer_norm_before", false) || is("_remove_final_layer_norm", true))
    return Unsupported(
        "a model with its norms behind what they are for (do_layer_norm_before, "
        "_remove_final_layer_norm) cannot be sliced");
  return OkStatus();
}

}  // namespace

Result<SliceLayout> LayOutSlices(ByteSpan config, std::span<const std::string> tensors) {
  ASSIGN_OR_RETURN(const Json json, Parse(config));
  SliceLayout layout;
  if (const auto type = json.find("model_type"); type != json.end() && type->is_string())
    layout.model_type = type->get<std::string>();
  if (json.contains("sliced_size"))
    return Unsupported("the model is sliced already; slice the one that it was made of");
  const auto architecture = kArchitectures.find(layout.model_type);
  if (architecture == kArchitectures.end()) {
    std::string known;
    for (const auto& [type, of] : kArchitectures) known += (known.empty() ? "" : ", ") + type;
    return Unsupported("models of type '" + layout.model_type + "' cannot be sliced; those of " + known + " can");
  }
  const Family& family = *architecture->second.family;
  layout.has_layer_norms = family.has_layer_norms;
  if (layout.has_layer_norms) RETURN_IF_ERROR(CheckForm(json));
  ASSIGN_OR_RETURN(layout.hidden, Count(json, "hidden_size"));
  ASSIGN_OR_RETURN(layout.heads, Count(json, "num_attention_heads"));
  std::set<std::string_view> left(tensors.begin(), tensors.end());
  std::string missing;
  const auto take = [&](const std::string& name, bool must) {
    if (left.erase(name) > 0) return true;
    if (must && missing.empty()) missing = name;
    return false;
  };
  layout.embedding = family.embedding;
  take(layout.embedding, true);
  for (const char* added : family.added) {
    layout.added.emplace_back(added);
    take(added, true);
  }
  layout.final_norm = family.final_norm;
  take(layout.final_norm, true);
  for (const char* outside : family.outside) take(outside, false);
  layout.is_tied = !take(kHead, false);
  layout.head = layout.is_tied ? layout.embedding : kHead;
  ASSIGN_OR_RETURN(const NamedLayers layers, FindLayersNamed(tensors, family.layers));
  for (uint32_t layer = 0; layer < layers.layers; ++layer) {
    for (const StepNames& names : family.steps) {
      SliceStep& step = layout.steps.emplace_back();
      step.norm = layers.scheme.NameOf(layer, names.norm);
      take(step.norm, true);
      if (layout.has_layer_norms && take(BiasOf(step.norm), false)) step.norm_bias = BiasOf(step.norm);
      for (const char* reader : names.readers) {
        const std::string& name = step.readers.emplace_back(layers.scheme.NameOf(layer, reader));
        take(name, true);
        if (!layout.has_layer_norms) continue;
        // What the norm adds goes into the reader's bias.
        if (take(BiasOf(name), !step.norm_bias.empty()) && !step.norm_bias.empty())
          step.readers_biases.push_back(BiasOf(name));
      }
      for (const char* writer : names.writers) {
        const std::string name = layers.scheme.NameOf(layer, writer);
        if (take(name, writer == names.writers.front())) step.writers.push_back(name);
      }
      step.shortcut = layers.scheme.NameOf(layer, names.shortcut);
    }
    for (const char* inside : family.inside) take(layers.scheme.NameOf(layer, inside), false);
  }
  if (!missing.empty())
    return Unsupported("a model of type " + layout.model_type + " has a tensor '" + missing + "', this one has not");
  if (!left.empty())
    return Unsupported("'" + std::string(*left.begin()) + "' is no tensor of a model of type " + layout.model_type +
                       " that slicing knows");
  return layout;
}

Result<Bytes> ConfigSliced(ByteSpan config, const SliceLayout& layout, uint64_t size, bool one_basis) {
  ASSIGN_OR_RETURN(Json json, Parse(config));
  const double narrower = static_cast<double>(layout.hidden) / static_cast<double>(size);
  json["tie_word_embeddings"] = false;
  if (one_basis) {
    if (!json.contains("head_dim") || json["head_dim"].is_null()) json["head_dim"] = layout.hidden / layout.heads;
    json["hidden_size"] = size;
    // The mean over `size` squares is that much larger than over all: the norm's weight makes up for it.
    if (const auto eps = json.find("rms_norm_eps"); eps != json.end() && eps->is_number())
      *eps = eps->get<double>() * narrower;
  } else {
    const std::string& name = kArchitectures.at(layout.model_type).class_name;
    json["architectures"] = {name};
    json["auto_map"] = {{"AutoModelForCausalLM", "modeling_sliced." + name}};
    json["sliced_size"] = size;
    // A layer that is left out in training would leave the stream in the axes of another.
    if (json.contains("layerdrop")) json["layerdrop"] = 0.0;
  }
  const std::string text = JsonText(json, JsonStyle::kIndented) + "\n";
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

}  // namespace modelstore
