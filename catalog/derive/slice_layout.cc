#include "catalog/derive/slice_layout.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "catalog/derive/checkpoint_files.h"
#include "catalog/derive/layer_names.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kLayers = "model.layers.{}.";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";
// Classes of the modelling file.
const std::map<std::string, std::string> kClasses = {{"llama", "SlicedLlamaForCausalLM"},
                                                     {"mistral", "SlicedMistralForCausalLM"},
                                                     {"qwen2", "SlicedQwen2ForCausalLM"},
                                                     {"qwen3", "SlicedQwen3ForCausalLM"}};
struct StepNames {
  const char* norm;
  std::vector<const char*> readers, writers;
  const char* shortcut;
};
const StepNames kSteps[] = {{"input_layernorm.weight",
                             {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
                             {"self_attn.o_proj.weight", "self_attn.o_proj.bias"},
                             "attn_shortcut.weight"},
                            {"post_attention_layernorm.weight",
                             {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
                             {"mlp.down_proj.weight", "mlp.down_proj.bias"},
                             "mlp_shortcut.weight"}};
// Behind what reads the stream: slicing leaves them as they are.
constexpr std::string_view kInside[] = {
    "self_attn.q_proj.bias",   "self_attn.k_proj.bias",         "self_attn.v_proj.bias", "self_attn.q_norm.weight",
    "self_attn.k_norm.weight", "self_attn.rotary_emb.inv_freq", "mlp.gate_proj.bias",    "mlp.up_proj.bias"};

Result<Json> Parse(ByteSpan config) {
  RETURN_IF_ERROR(CheckNesting(config, "config.json"));
  Json json = Json::parse(AsChars(config), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Corruption("config.json is no JSON object");
  return json;
}

Result<uint64_t> Count(const Json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end() || !it->is_number_unsigned() || *it == 0 || *it > UINT32_MAX)
    return Unsupported("config.json has no usable " + std::string(key));
  return it->get<uint64_t>();
}

}  // namespace

Result<SliceLayout> LayOutSlices(ByteSpan config, std::span<const std::string> tensors) {
  ASSIGN_OR_RETURN(const Json json, Parse(config));
  SliceLayout layout;
  if (const auto type = json.find("model_type"); type != json.end() && type->is_string())
    layout.model_type = type->get<std::string>();
  if (json.contains("sliced_size"))
    return Unsupported("the model is sliced already; slice the one that it was made of");
  if (!kClasses.contains(layout.model_type)) {
    std::string known;
    for (const auto& [type, name] : kClasses) known += (known.empty() ? "" : ", ") + type;
    return Unsupported("models of type '" + layout.model_type + "' cannot be sliced; those of " + known + " can");
  }
  ASSIGN_OR_RETURN(layout.hidden, Count(json, "hidden_size"));
  ASSIGN_OR_RETURN(layout.heads, Count(json, "num_attention_heads"));
  std::set<std::string_view> left(tensors.begin(), tensors.end());
  std::string missing;
  const auto take = [&](const std::string& name, bool must) {
    if (left.erase(name) > 0) return true;
    if (must && missing.empty()) missing = name;
    return false;
  };
  layout.embedding = kEmbedding;
  take(kEmbedding, true);
  layout.final_norm = kFinalNorm;
  take(kFinalNorm, true);
  layout.is_tied = !take(kHead, false);
  layout.head = layout.is_tied ? kEmbedding : kHead;
  ASSIGN_OR_RETURN(const NamedLayers layers, FindLayersNamed(tensors, kLayers));
  for (uint32_t layer = 0; layer < layers.layers; ++layer) {
    for (const StepNames& names : kSteps) {
      SliceStep& step = layout.steps.emplace_back();
      step.norm = layers.scheme.NameOf(layer, names.norm);
      take(step.norm, true);
      for (const char* reader : names.readers) {
        step.readers.push_back(layers.scheme.NameOf(layer, reader));
        take(step.readers.back(), true);
      }
      for (const char* writer : names.writers) {
        const std::string name = layers.scheme.NameOf(layer, writer);
        if (take(name, writer == names.writers.front())) step.writers.push_back(name);
      }
      step.shortcut = layers.scheme.NameOf(layer, names.shortcut);
    }
    for (const std::string_view inside : kInside) take(layers.scheme.NameOf(layer, inside), false);
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
    const std::string& name = kClasses.at(layout.model_type);
    json["architectures"] = {name};
    json["auto_map"] = {{"AutoModelForCausalLM", "modeling_sliced." + name}};
    json["sliced_size"] = size;
  }
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

}  // namespace modelstore
