#include "catalog/derive/layer_config.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "catalog/derive/checkpoint_files.h"
#include "codec/json/json_text.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;
using Keys = std::set<std::string, std::less<>>;

constexpr std::string_view kConfig = "config.json";
// Files beside it that name layers, or modules of them.
const Keys kSettingsFiles = {
    "generation_config.json",   "adapter_config.json",  "quantize_config.json", "quant_config.json",
    "quantization_config.json", "hf_quant_config.json", "params.json"};

// How many layers there are. A model of two stacks says it of each.
const Keys kCounts = {"num_hidden_layers",      "n_layer",    "num_layers", "n_layers",
                      "num_transformer_layers", "num_blocks", "n_blocks"};
const Keys kEncoderCounts = {"encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers", "n_layers"};
const Keys kDecoderCounts = {"decoder_layers", "num_decoder_layers"};
// Of multimodal models: where the configuration of the text model is.
const Keys kInnerConfigs = {"text_config", "llm_config", "language_config", "thinker_config"};
// Modules' names: what one is called is looked at, not how many there are.
const Keys kNameLists = {"ignored_layers",
                         "modules_to_not_convert",
                         "llm_int8_skip_modules",
                         "ignore",
                         "targets",
                         "target_modules",
                         "modules_to_save",
                         "exclude_modules",
                         "layers_pattern",
                         "modules_in_block_to_quantize"};

// Numbers of layers, in any order.
const Keys kNumberLists = {"mlp_only_layers",  "dense_layers",       "cross_attention_layers", "moe_layers",
                           "hybrid_layer_ids", "attn_layer_indices", "layers_to_transform"};
// Groups of layers of which the others use what the first one computes.
const Keys kSharingGroups = {"kv_reuse_group"};
// Counts of first layers, of last layers, and a last layer: what is of another kind.
const Keys kFirstCounts = {"max_window_layers", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index",
                           "assistant_early_exit"};
const Keys kLastCounts = {"num_kv_shared_layers"};
const Keys kLastNumbers = {"moe_layer_end_index"};
// A pattern of kinds that is repeated until there is one for each layer.
const Keys kRepeated = {"block_types", "_block_types"};
// One character a layer.
const Keys kLayerTexts = {"hybrid_override_pattern"};
// What a model has once, or once for each layer as a list.
const Keys kPerLayer = {"intermediate_size",
                        "ffn_hidden_size",
                        "moe_intermediate_size",
                        "num_attention_heads",
                        "num_key_value_heads",
                        "num_query_heads",
                        "num_kv_heads",
                        "num_heads",
                        "n_head",
                        "n_heads",
                        "head_dim",
                        "ffn_multipliers",
                        "activation_sparsity_pattern",
                        "attention_window",
                        "sliding_window",
                        "window_size",
                        "attn_type_list",
                        "attention_types",
                        "attn_types",
                        "num_experts",
                        "num_local_experts",
                        "num_experts_per_tok",
                        "num_shared_expert",
                        "moe_topk",
                        "rope_theta"};
// Lists that are of no layers, however long.
const Keys kOtherLists = {"architectures",   "short_factor",      "long_factor",          "mrope_section",
                          "languages",       "ssm_multipliers",   "mlp_multipliers",      "keys_to_ignore_at_inference",
                          "id2label",        "weight_block_size", "image_grid_pinpoints", "bad_words_ids",
                          "force_words_ids", "alignment_heads"};
// Words of a number's key that say that it is not of layers, or only with another key that is.
constexpr std::string_view kOtherWords[] = {"norm",   "ln",      "scale", "pooler",     "adapter",    "feat",  "conv",
                                            "offset", "predict", "head",  "classifier", "prediction", "embed", "fc"};

// Kinds of layers by their numbers: every so many is of another kind, unless a list says so for each.
struct Period {
  const char *key, *list;
};
constexpr Period kPeriods[] = {{"sliding_window_pattern", "layer_types"},
                               {"full_attention_interval", "layer_types"},
                               {"interleave_moe_layer_step", "moe_layers"},
                               {"no_rope_layer_interval", "no_rope_layers"},
                               {"decoder_sparse_step", ""},
                               {"moe_layer_freq", ""},
                               {"attn_layer_period", ""},
                               {"expert_layer_period", ""},
                               {"layer_group_size", ""},
                               {"cla_share_factor", ""},
                               {"rescale_every", ""}};
// Words of a key of layers that make it such a number.
constexpr std::string_view kPeriodWords[] = {"every",     "interval", "period", "freq",
                                             "frequency", "step",     "stride", "switch"};
// Words of a key that ends in one of those, or has "every", which make it one of kinds of layers.
constexpr std::string_view kKindWords[] = {"mamba",   "attn",   "attention", "moe",    "expert",
                                           "experts", "sparse", "layer",     "layers", "cross"};
// What models of a type have where no key says it.
struct TypePeriod {
  uint64_t layers;
  std::vector<const char*> keys;
};
const std::map<std::string, TypePeriod, std::less<>> kPeriodOfType = {
    {"gemma2", {2, {"layer_types"}}},
    {"gemma3", {6, {"layer_types", "sliding_window_pattern"}}},
    {"gemma3_text", {6, {"layer_types", "sliding_window_pattern"}}},
    {"gemma3n_text", {5, {"layer_types"}}},
    {"gpt_oss", {2, {"layer_types"}}},
    {"cohere2", {4, {"layer_types", "sliding_window_pattern"}}},
    {"olmo3", {4, {"layer_types"}}},
    {"qwen3_next", {4, {"layer_types", "full_attention_interval"}}},
    {"modernbert", {3, {"layer_types", "global_attn_every_n_layers"}}},
    {"recurrent_gemma", {3, {"block_types", "_block_types"}}},
    {"smollm3", {4, {"no_rope_layers", "no_rope_layer_interval"}}},
    {"jamba", {8, {"attn_layer_period"}}}};

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }
template <typename Parts>
bool ContainsAny(std::string_view text, const Parts& parts) {
  return std::ranges::any_of(parts, [&](std::string_view part) { return Contains(text, part); });
}
template <typename Words>
bool HasWord(std::string_view key, const Words& words) {
  const std::string parts = "_" + std::string(key) + "_";
  return std::ranges::any_of(words,
                             [&](std::string_view word) { return Contains(parts, "_" + std::string(word) + "_"); });
}
bool IsOfNumbers(std::string_view key) {
  return ContainsAny(key, std::initializer_list<std::string_view>{"idx", "indices", "indexes", "_ids"});
}
bool IsOfLayers(std::string_view key) {
  return ContainsAny(key, std::initializer_list<std::string_view>{"layer", "block", "idx", "indices", "indexes"});
}

bool IsPeriodOfKinds(std::string_view key) {
  const std::string_view last = key.substr(key.rfind('_') + 1);
  return HasWord(key, kKindWords) &&
         (HasWord(last, kPeriodWords) || HasWord(key, std::initializer_list<std::string_view>{"every"}));
}

bool AllOf(const Json& list, bool (Json::*is)() const noexcept) {
  return list.is_array() && !list.empty() &&
         std::ranges::all_of(list, [&](const Json& entry) { return (entry.*is)(); });
}
// Numbers of layers without one twice, as they are listed.
bool AreNumbers(const Json& list, uint32_t layers) {
  if (!AllOf(list, &Json::is_number_unsigned)) return false;
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].get<uint64_t>() >= layers || (i > 0 && list[i] <= list[i - 1])) return false;
  }
  return true;
}

// Lists of lists, in any depth, of nothing but numbers that layers have.
bool AreGroups(const Json& list, uint32_t layers) {
  return AllOf(list, &Json::is_array) && std::ranges::all_of(list, [&](const Json& group) {
           return AreGroups(group, layers) ||
                  (AllOf(group, &Json::is_number_unsigned) &&
                   std::ranges::all_of(group, [&](const Json& number) { return number < layers; }));
         });
}

class LayerRewriter {
 public:
  LayerRewriter(std::string_view file, const LayerCut& cut)
      : file_(file), cut_(cut), mentions_(cut), is_config_(file == kConfig || file == "params.json") {}

  // True when the object, or the text model's inside it, says that there are so many layers.
  Result<bool> RewriteModel(Json& object, const std::string& path) {
    bool is_it = RewriteCounts(object);
    // Another stack's, of as many as it says.
    const bool is_other = !is_it && is_config_ && std::ranges::any_of(kCounts, [&](const std::string& key) {
      return object.contains(key) && object[key].is_number_unsigned();
    });
    if (is_it) {
      RETURN_IF_ERROR(CheckKinds(object, path));
      RewriteScale(object);
    }
    const bool has_types = object.contains("layer_types") && object["layer_types"].is_array();
    RETURN_IF_ERROR(ForMembers(object, path, [&](const std::string& key, Json& value, const std::string& at) -> Status {
      has_types_ = has_types;
      if (!kInnerConfigs.contains(key) || !value.is_object())
        return is_other ? RewriteNames(value, at) : RewriteMember(key, value, at);
      ASSIGN_OR_RETURN(const bool is_inner, RewriteModel(value, at + "."));
      is_it |= is_inner;
      return OkStatus();
    }));
    return is_it;
  }

 private:
  Status Refuse(const std::string& at, const std::string& why) const {
    return Unsupported(file_ + ": '" + at + "' " + why +
                       "; if it is not of the layers, push the model without that key, and derive from it");
  }

  bool Keeps(uint64_t period) const {
    for (size_t i = 0; i < cut_.kept.size(); ++i) {
      if (period > 1 && cut_.kept[i] % period != i % period) return false;
    }
    return true;
  }
  uint64_t KeptBefore(uint64_t layer) const {
    return static_cast<uint64_t>(std::ranges::count_if(cut_.kept, [&](uint32_t kept) { return kept < layer; }));
  }

  // What stands here describes the model, not how modules of it are quantized or used.
  bool IsOfModel(const std::string& at) const { return is_config_ && !Contains(at, "quant"); }

  // A member for each that is left: what names a dropped layer goes with it.
  template <typename Rewrite>
  Status ForMembers(Json& object, const std::string& path, const Rewrite& rewrite) {
    Json::object_t left;
    for (auto& [key, value] : object.get_ref<Json::object_t&>()) {
      const std::string at = path + key;
      ASSIGN_OR_RETURN(const std::optional<std::string> renamed, Named(key, at));
      if (!renamed) continue;
      RETURN_IF_ERROR(rewrite(key, value, at));
      left.push_back({*renamed, std::move(value)});
    }
    object = std::move(left);
    return OkStatus();
  }

  Result<std::optional<std::string>> Named(const std::string& text, const std::string& at) {
    Result<std::optional<std::string>> renamed = mentions_.Renumber(text);
    if (!renamed.ok()) return Refuse(at, "is of layers: " + std::string(renamed.status().message()));
    return renamed;
  }

  // Names of layers in any depth, and nothing else.
  Status RewriteNames(Json& value, const std::string& at) {
    if (value.is_object())
      return ForMembers(value, at + ".", [&](const std::string&, Json& inner, const std::string& in) {
        return RewriteNames(inner, in);
      });
    if (value.is_array()) {
      Json left = Json::array();
      for (Json& entry : value) {
        if (entry.is_string()) {
          ASSIGN_OR_RETURN(const std::optional<std::string> renamed, Named(entry.get_ref<std::string&>(), at));
          if (renamed) left.push_back(*renamed);
        } else {
          RETURN_IF_ERROR(RewriteNames(entry, at));
          left.push_back(std::move(entry));
        }
      }
      value = std::move(left);
    } else if (value.is_string()) {
      ASSIGN_OR_RETURN(const std::optional<std::string> renamed, Named(value.get_ref<std::string&>(), at));
      if (!renamed) return Refuse(at, "names a layer that is dropped");
      value = *renamed;
    }
    return OkStatus();
  }

  bool RewriteCounts(Json& object) const {
    const bool has_two_stacks = object.contains("is_encoder_decoder") && object["is_encoder_decoder"] == true;
    const bool is_decoder = Contains(cut_.scheme.before, "decoder");
    bool has_count = false;
    for (const std::string& key : !has_two_stacks ? kCounts : is_decoder ? kDecoderCounts : kEncoderCounts) {
      if (!object.contains(key) || object[key] != cut_.layers) continue;
      object[key] = cut_.kept.size();
      has_count = true;
    }
    return has_count;
  }

  // MiniCPM divides what a layer adds by the root of how many there are.
  void RewriteScale(Json& object) const {
    const auto scale = object.find("scale_depth");
    if (scale == object.end() || !scale->is_number() || object.contains("mup_denominator")) return;
    *scale = scale->get<double>() * std::sqrt(static_cast<double>(cut_.kept.size()) / cut_.layers);
  }

  // Layers whose kind, or whose computation, follows from their numbers alone.
  Status CheckKinds(const Json& object, const std::string& path) const {
    const auto has_list = [&](const char* key) { return object.contains(key) && object[key].is_array(); };
    const auto refusal = [&](const std::string& why) {
      return Unsupported(file_ + ": layers of this model are of kinds by their numbers (" + path + why +
                         "), and would become others; drop whole periods");
    };
    for (const Period& period : kPeriods) {
      const auto value = object.find(period.key);
      if (value == object.end() || !value->is_number_unsigned() || has_list(period.list)) continue;
      if (!Keeps(value->get<uint64_t>())) return refusal(period.key);
    }
    if (const auto inverse = object.find("scale_attn_by_inverse_layer_idx");
        inverse != object.end() && *inverse == true)
      return refusal("scale_attn_by_inverse_layer_idx");
    // PLaMo-2 of few layers has attention in the last one.
    if (const auto step = object.find("mamba_step"); step != object.end() && step->is_number_unsigned() &&
                                                     step->get<uint64_t>() > 1 &&
                                                     cut_.kept.size() <= step->get<uint64_t>() / 2)
      return refusal("mamba_step");
    if (const auto shared = object.find("num_mem_blocks"); shared != object.end() && shared->is_number_unsigned()) {
      const auto ids = object.find("hybrid_layer_ids");
      const bool stay = ids != object.end() && ids->is_array() && std::ranges::all_of(*ids, [&](const Json& id) {
                          return id.is_number_unsigned() && cut_.NumberOf(id.get<uint64_t>()).has_value();
                        });
      if (!stay) return refusal("num_mem_blocks");
    }
    const auto type = object.find("model_type");
    if (type == object.end() || !type->is_string()) return OkStatus();
    const auto& name = type->get_ref<const std::string&>();
    if (name == "diffllama" && !Keeps(cut_.layers)) return refusal("model type " + name);
    const auto period = kPeriodOfType.find(name);
    if (period == kPeriodOfType.end() || Keeps(period->second.layers)) return OkStatus();
    const bool is_said = std::ranges::any_of(
        period->second.keys, [&](const char* key) { return object.contains(key) && !object[key].is_null(); });
    return is_said ? OkStatus() : refusal("model type " + name);
  }

  Status RewriteMember(const std::string& key, Json& value, const std::string& at) {
    if (IsOfOtherModel(key) || kNameLists.contains(key)) return RewriteNames(value, at);
    if (value.is_object()) return RewriteObject(key, value, at);
    if (value.is_array()) return RewriteList(key, value, at);
    if (value.is_string()) return RewriteText(key, value, at);
    if (value.is_number_integer()) return RewriteNumber(key, value, at);
    return OkStatus();
  }

  Status RewriteObject(const std::string& key, Json& object, const std::string& at) {
    // Another model: it says itself of which type.
    if (object.contains("model_type")) return RewriteNames(object, at);
    const auto is_number = [](const auto& member) {
      return !member.first.empty() && member.first.find_first_not_of("0123456789") == std::string::npos;
    };
    const bool is_numbered = !object.empty() && std::ranges::all_of(object.get_ref<Json::object_t&>(), is_number);
    if (!is_numbered || kOtherLists.contains(key))
      return ForMembers(object, at + ".", [&](const std::string& inner, Json& value, const std::string& in) {
        return RewriteMember(inner, value, in);
      });
    if (!IsOfLayers(key)) {
      if (IsOfModel(at) && object.size() == cut_.layers) return Refuse(at, "has as many numbers as there are layers");
      return RewriteNames(object, at);
    }
    Json::object_t left;
    for (auto& [number, value] : object.get_ref<Json::object_t&>()) {
      const uint64_t layer = number.size() > 6 ? cut_.layers : std::stoull(number);
      if (layer >= cut_.layers || std::to_string(layer) != number) return Refuse(at, "has a number that no layer has");
      if (const auto renumbered = cut_.NumberOf(layer)) left.push_back({std::to_string(*renumbered), std::move(value)});
    }
    object = std::move(left);
    return OkStatus();
  }

  Json Numbers(const Json& list) const {
    std::set<uint64_t> listed;
    for (const Json& number : list) listed.insert(number.get<uint64_t>());
    Json numbers = Json::array();
    for (uint32_t i = 0; i < cut_.kept.size(); ++i) {
      if (listed.contains(cut_.kept[i])) numbers.push_back(i);
    }
    return numbers;
  }

  // `list[layer % its size]` of each layer that is kept.
  Json Entries(const Json& list) const {
    Json entries = Json::array();
    for (const uint32_t layer : cut_.kept) entries.push_back(list[layer % list.size()]);
    return entries;
  }

  Status RewriteList(const std::string& key, Json& list, const std::string& at) {
    if (key == "attention_types" && RewriteRepeatedTypes(list)) return OkStatus();
    if (key == "alignment_heads" && Contains(cut_.scheme.before, "decoder")) return RewriteHeads(list, at);
    const bool has_names = std::ranges::any_of(list, [](const Json& entry) {
      return entry.is_string() && Contains(entry.get_ref<const std::string&>(), ".");
    });
    if (list.empty() || has_names || kOtherLists.contains(key) || Contains(key, "token") ||
        (!IsOfModel(at) && AllOf(list, &Json::is_string)))
      return RewriteNames(list, at);
    const bool is_of_layers = IsOfLayers(key);
    if (kSharingGroups.contains(key)) return RewriteSharing(list, at);
    if (kNumberLists.contains(key)) {
      if (!AllOf(list, &Json::is_number_unsigned)) return Refuse(at, "is no list of layers' numbers");
      list = Numbers(list);
    } else if (kRepeated.contains(key)) {
      if (!Keeps(list.size()) || list.size() > cut_.kept.size()) list = Entries(list);
    } else if (list.size() == cut_.layers) {
      const bool are_numbers = AreNumbers(list, cut_.layers);
      if (are_numbers && is_of_layers && IsOfNumbers(key)) {
        list = Numbers(list);
      } else if (!are_numbers && (is_of_layers || kPerLayer.contains(key))) {
        list = Entries(list);
      } else if (IsOfModel(at) || is_of_layers) {
        return Refuse(at, "has as many entries as there are layers");
      }
    } else if (is_of_layers) {
      return RewriteOtherLength(key, list, at);
    } else if (Contains(key, "pattern") && list.size() < cut_.layers && !Keeps(list.size())) {
      return Refuse(at, "is a pattern of layers, and they would become others");
    } else if (IsOfModel(at) && AreGroups(list, cut_.layers)) {
      return Refuse(at, "has lists that may be of layers");
    }
    return RewriteNames(list, at);
  }

  // Hymba's [[1, 2], [4, 5]]. A group of one layer shares nothing.
  Status RewriteSharing(Json& list, const std::string& at) const {
    Json left = Json::array();
    for (const Json& group : list) {
      if (!AreNumbers(group, cut_.layers)) return Refuse(at, "is no list of groups of layers");
      Json numbers = Numbers(group);
      if (numbers.empty()) continue;
      if (!cut_.NumberOf(group[0].get<uint64_t>()))
        return Refuse(at, "has a group whose first layer is dropped, of which others use what it computes");
      if (numbers.size() > 1) left.push_back(std::move(numbers));
    }
    list = std::move(left);
    return OkStatus();
  }

  Status RewriteOtherLength(const std::string& key, Json& list, const std::string& at) const {
    if (AreNumbers(list, cut_.layers)) {
      list = Numbers(list);
      return OkStatus();
    }
    const bool are_sizes = Contains(key, "block") && !Contains(key, "layer") && !IsOfNumbers(key);
    if (AllOf(list, &Json::is_number_integer) && !are_sizes) return Refuse(at, "is no list of layers' numbers");
    if (std::ranges::any_of(list, [](const Json& entry) { return AllOf(entry, &Json::is_number_integer); }))
      return Refuse(at, "has lists that may be of layers");
    if (Contains(key, "type"))
      return Refuse(at, "has " + std::to_string(list.size()) + " entries, not one for a layer");
    return OkStatus();
  }

  // GPT-Neo's [[["global", "local"], 6]]: a pattern and how often it repeats. False when it is something else.
  bool RewriteRepeatedTypes(Json& list) const {
    Json each = Json::array();
    for (const Json& part : list) {
      if (!part.is_array() || part.size() != 2 || !part[0].is_array() || !part[1].is_number_unsigned() ||
          part[0].empty())
        return false;
      for (uint64_t i = 0; i < part[1].get<uint64_t>() && each.size() < cut_.layers; ++i)
        for (const Json& type : part[0]) each.push_back(type);
    }
    if (each.size() != cut_.layers) return false;
    list = Json::array({Json::array({Entries(each), 1})});
    return true;
  }

  // Whisper's [[layer, head], …] of the decoder.
  Status RewriteHeads(Json& list, const std::string& at) const {
    Json left = Json::array();
    for (Json& pair : list) {
      if (!AllOf(pair, &Json::is_number_unsigned) || pair.size() != 2)
        return Refuse(at, "is no list of layers and heads");
      const auto number = cut_.NumberOf(pair[0].get<uint64_t>());
      if (number) left.push_back({*number, pair[1]});
    }
    list = std::move(left);
    return OkStatus();
  }

  Status RewriteText(const std::string& key, Json& value, const std::string& at) {
    const std::string text = value.get<std::string>();
    const bool is_kinds = !text.empty() && std::ranges::none_of(text, [](char c) { return c >= 'a' && c <= 'z'; });
    if (kLayerTexts.contains(key) || (Contains(key, "pattern") && is_kinds)) {
      if (text.size() == cut_.layers) {
        std::string left;
        for (const uint32_t layer : cut_.kept) left += text[layer];
        value = left;
        return OkStatus();
      }
      if (kLayerTexts.contains(key))
        return Refuse(at, "has " + std::to_string(text.size()) + " characters, not one for a layer");
      if (text.size() < cut_.layers && !has_types_ && !Keeps(text.size()))
        return Refuse(at, "is a pattern of layers, and they would become others");
    }
    // "3,4,5"
    if (IsOfLayers(key) && !text.empty() && text.find_first_not_of("0123456789, ") == std::string::npos) {
      Json list = TryParseOrderedJson("[" + text + "]");
      if (!AreNumbers(list, cut_.layers)) return Refuse(at, "is no list of layers' numbers");
      const bool has_blanks = Contains(text, ", ");
      std::string left;
      for (const Json& number : Numbers(list)) left += (left.empty() ? "" : has_blanks ? ", " : ",") + JsonText(number);
      value = left;
      return OkStatus();
    }
    return RewriteNames(value, at);
  }

  Status RewriteNumber(const std::string& key, Json& value, const std::string& at) const {
    const bool is_period = std::ranges::any_of(kPeriods, [&](const Period& period) { return key == period.key; });
    if (is_period || kCounts.contains(key) || kEncoderCounts.contains(key) || kDecoderCounts.contains(key))
      return OkStatus();
    if (value < 0) return OkStatus();  // none, or counted from the end
    const auto number = value.get<uint64_t>();
    if (kFirstCounts.contains(key)) {
      value = KeptBefore(number);
    } else if (kLastCounts.contains(key)) {
      value = cut_.kept.size() - KeptBefore(cut_.layers - std::min<uint64_t>(number, cut_.layers));
    } else if (kLastNumbers.contains(key)) {
      const uint64_t before = KeptBefore(std::min<uint64_t>(number, cut_.layers) + 1);
      if (before == 0) return Refuse(at, "names a layer, and none up to it is left");
      value = before - 1;
    } else if (kNumberLists.contains(key)) {
      const auto renumbered = cut_.NumberOf(number);
      if (!renumbered) return Refuse(at, "names a layer that is dropped");
      value = *renumbered;
    } else if (HasWord(key, std::initializer_list<std::string_view>{"layer", "layers"}) && !HasWord(key, kOtherWords)) {
      const bool keeps = HasWord(key, kPeriodWords) ? Keeps(number) : number == 0 || number > cut_.layers;
      if (!keeps) return Refuse(at, "is a number that may be of layers");
    } else if (IsOfModel(at) && IsPeriodOfKinds(key) && !Keeps(number)) {
      return Refuse(
          at, "is a number that kinds of layers may follow from, and they would become others; drop whole periods");
    }
    return OkStatus();
  }

  const std::string file_;
  const LayerCut& cut_;
  LayerMentions mentions_;
  const bool is_config_;
  bool has_types_ = false;  // the object that is rewritten says of each layer which kind it is
};

Result<Json> Parse(std::string_view file, ByteSpan text) {
  RETURN_IF_ERROR(CheckNesting(text, file));
  Json json = TryParseOrderedJson(AsChars(text));
  if (!json.is_object()) return NoJsonObject(text, file);
  return json;
}

Bytes Dumped(const Json& json) {
  const std::string text = JsonText(json, JsonStyle::kIndented) + "\n";
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

// How many layers more than the model's the tensors have for predicting more tokens (DeepSeek-V3, GLM-4.5); 0 when that
// does not explain how many they have.
uint64_t PredictingLayers(const Json& model, uint32_t layers) {
  const auto more = model.find("num_nextn_predict_layers");
  if (more != model.end() && more->is_number_unsigned() && *more > 0 && *more < layers) {
    for (const std::string& key : kCounts) {
      if (model.contains(key) && model[key] == layers - more->get<uint64_t>()) return *more;
    }
  }
  for (const std::string& key : kInnerConfigs) {
    if (!model.contains(key) || !model[key].is_object()) continue;
    if (const uint64_t inner = PredictingLayers(model[key], layers); inner > 0) return inner;
  }
  return 0;
}

}  // namespace

Result<Bytes> ConfigWithLayers(ByteSpan config, const LayerCut& cut) {
  ASSIGN_OR_RETURN(Json json, Parse(kConfig, config));
  if (const uint64_t predicting = PredictingLayers(json, cut.layers); predicting > 0) {
    return Unsupported("the last " + std::to_string(predicting) + " of the " + std::to_string(cut.layers) +
                       " layers are those of multi-token prediction (num_nextn_predict_layers); no layers can be "
                       "dropped beside them: push the model without their tensors and with num_nextn_predict_layers 0, "
                       "and derive from it");
  }
  ASSIGN_OR_RETURN(const bool is_it, LayerRewriter(kConfig, cut).RewriteModel(json, ""));
  if (is_it) return Dumped(json);
  std::string keys;
  for (const std::string& key : kCounts) keys += (keys.empty() ? "" : ", ") + key;
  return Unsupported("config.json does not say under " + keys + " that the model has " + std::to_string(cut.layers) +
                     " layers, which its tensors have");
}

bool IsLayerSettings(std::string_view file) { return kSettingsFiles.contains(file); }

Result<Bytes> SettingsWithLayers(std::string_view file, ByteSpan text, const LayerCut& cut) {
  ASSIGN_OR_RETURN(Json json, Parse(file, text));
  const Json before = json;
  RETURN_IF_ERROR(LayerRewriter(file, cut).RewriteModel(json, "").status());
  return json == before ? Bytes(text.begin(), text.end()) : Dumped(json);
}

}  // namespace modelstore
