#include "catalog/derive/checkpoint_files.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMetadata = "__metadata__";
constexpr const char* kLayerCounts[] = {"num_hidden_layers", "n_layer", "num_layers", "n_layers"};
// Of multimodal models: where the configuration of the text model is.
constexpr const char* kInnerConfigs[] = {"text_config", "llm_config", "language_config"};
// Lists of layers' numbers, and counts of first layers that are of a kind.
constexpr const char* kNumberLists[] = {"mlp_only_layers", "dense_layers", "cross_attention_layers"};
constexpr const char* kFirstCounts[] = {"max_window_layers", "first_k_dense_replace"};

Result<Json> ParseObject(ByteSpan text, std::string_view what) {
  RETURN_IF_ERROR(CheckNesting(text, what));
  Json parsed = Json::parse(AsChars(text), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return Corruption(std::string(what) + " is no JSON object");
  return parsed;
}

Bytes ToBytes(const std::string& text) {
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

Bytes Pretty(const Json& document) {
  return ToBytes(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

// A key that the object has not yet, at its end: looking for it takes as long as the object is.
void Append(Json* object, const std::string& key, Json value) {
  object->get_ref<Json::object_t&>().push_back({key, std::move(value)});
}

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
                               {"expert_layer_period", ""}};
// What models of a type have where the configuration does not say.
const std::map<std::string, uint64_t> kPeriodOfType = {
    {"gemma2", 2}, {"gemma3_text", 6}, {"gemma3", 6}, {"cohere2", 4}};

bool Keeps(std::span<const uint32_t> kept, uint64_t period) {
  for (size_t i = 0; i < kept.size(); ++i) {
    if (period > 1 && kept[i] % period != i % period) return false;
  }
  return true;
}

Status CheckPeriods(const Json& config, std::span<const uint32_t> kept) {
  const auto has_list = [&](const char* key) {
    const auto list = config.find(key);
    return list != config.end() && list->is_array();
  };
  const auto refusal = [](const std::string& why) {
    return Unsupported("layers of this model are of kinds by their numbers (" + why +
                       "), and would become others; drop whole periods");
  };
  for (const Period& period : kPeriods) {
    const auto value = config.find(period.key);
    if (value == config.end() || !value->is_number_unsigned() || has_list(period.list)) continue;
    if (!Keeps(kept, value->get<uint64_t>())) return refusal(period.key);
  }
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string() || has_list("layer_types")) return OkStatus();
  const auto period = kPeriodOfType.find(type->get<std::string>());
  if (period != kPeriodOfType.end() && !config.contains("sliding_window_pattern") && !Keeps(kept, period->second))
    return refusal("model type " + period->first);
  return OkStatus();
}

// Rewrites what says something of each layer. False when the object is of no model with so many.
bool RewriteLayers(Json& config, uint32_t layers, std::span<const uint32_t> kept) {
  bool is_it = false;
  for (const char* key : kLayerCounts) {
    if (!config.contains(key) || config[key] != layers) continue;
    config[key] = kept.size();
    is_it = true;
  }
  if (!is_it) return false;
  for (auto& [key, value] : config.items()) {
    const bool of_layers = key.find("layer") != std::string::npos || key.find("block") != std::string::npos;
    const bool of_numbers = std::ranges::find(kNumberLists, key) != std::end(kNumberLists);
    if (of_numbers && value.is_array()) {
      std::set<uint64_t> listed;
      for (const Json& number : value) {
        if (number.is_number_unsigned()) listed.insert(number.get<uint64_t>());
      }
      Json numbers = Json::array();
      for (uint32_t i = 0; i < kept.size(); ++i) {
        if (listed.contains(kept[i])) numbers.push_back(i);
      }
      value = std::move(numbers);
    } else if (of_layers && value.is_array() && value.size() == layers) {
      Json entries = Json::array();
      for (const uint32_t layer : kept) entries.push_back(value[layer]);
      value = std::move(entries);
    } else if (std::ranges::find(kFirstCounts, key) != std::end(kFirstCounts) && value.is_number_unsigned()) {
      const auto count = value.get<uint64_t>();
      value = std::ranges::count_if(kept, [&](uint32_t layer) { return layer < count; });
    }
  }
  // GPT-Neo's [[["global", "local"], 6]]: a pattern and how often it repeats.
  const auto types = config.find("attention_types");
  if (types != config.end() && types->is_array() && config.contains("num_layers")) {
    Json each = Json::array(), kept_types = Json::array();
    for (const Json& part : *types) {
      if (!part.is_array() || part.size() != 2 || !part[0].is_array() || !part[1].is_number_unsigned() ||
          part[0].empty())
        return false;
      for (uint64_t i = 0; i < part[1].get<uint64_t>() && each.size() < layers; ++i)
        for (const Json& type : part[0]) each.push_back(type);
    }
    if (each.size() != layers) return false;
    for (const uint32_t layer : kept) kept_types.push_back(each[layer]);
    *types = Json::array({Json::array({kept_types, 1})});
  }
  return true;
}

}  // namespace

Status CheckNesting(ByteSpan json, std::string_view what) {
  constexpr int kMostLevels = 64;
  int levels = 0;
  bool in_string = false;
  const std::string_view text = AsChars(json);
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++levels > kMostLevels) return Corruption(std::string(what) + " is nested too deeply");
    } else if (c == '}' || c == ']') {
      --levels;
    }
  }
  return OkStatus();
}

uint64_t HeaderTensor::elems() const {
  uint64_t count = 1;
  for (const uint64_t dim : shape) count *= dim;
  return count;
}

Result<SafetensorsHeader> ReadSafetensorsHeader(ByteSpan header, uint64_t file_bytes) {
  // Bounds and rules are checked there; this reads what it does not keep.
  ASSIGN_OR_RETURN(const TensorIndex index, ParseSafetensorsHeader(header, file_bytes));
  // Sorted by name: there may be many.
  const auto json = nlohmann::json::parse(AsChars(header.subspan(kSafetensorsLengthBytes)), nullptr, false);
  if (!json.is_object()) return Corruption("the safetensors header is no JSON object");
  SafetensorsHeader out;
  if (const auto metadata = json.find(kMetadata); metadata != json.end()) out.metadata = metadata->dump();
  for (const TensorEntry& entry : index.tensors) {
    const nlohmann::json& tensor = json.at(entry.name);
    out.tensors.push_back({entry.name, tensor.at("dtype").get<std::string>(),
                           tensor.at("shape").get<std::vector<uint64_t>>(), entry.begin, entry.end - entry.begin});
  }
  return out;
}

Result<Bytes> WriteSafetensorsHeader(const SafetensorsHeader& header) {
  Json json = Json::object();
  if (!header.metadata.empty()) json[kMetadata] = Json::parse(header.metadata);
  uint64_t at = 0;
  for (const HeaderTensor& tensor : header.tensors) {
    Append(&json, tensor.name,
           {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes}}});
    at += tensor.bytes;
  }
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kSafetensorsMaxHeaderBytes)
    return ResourceExhausted("a safetensors header of " + std::to_string(text.size()) + " bytes is too large");
  ByteWriter out;
  out.U64(text.size());
  out.Append(AsBytes(text));
  return out.Release();
}

Result<std::set<std::string>> IndexedFiles(ByteSpan index) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(index, "the safetensors index"));
  std::set<std::string> files;
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) return Corruption("the safetensors index has no weight_map");
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) return Corruption("the safetensors index: a file's name is no string");
    files.insert(file.get<std::string>());
  }
  return files;
}

Result<Bytes> RewriteIndex(ByteSpan index, const std::map<std::string, IndexEntry>& tensors) {
  ASSIGN_OR_RETURN(Json json, ParseObject(index, "the safetensors index"));
  Json map = Json::object();
  std::set<std::string> there;
  if (const Json& before = json["weight_map"]; before.is_object()) {
    for (const auto& [name, file] : before.items()) {
      const auto tensor = tensors.find(name);
      if (tensor != tensors.end() && there.insert(name).second) Append(&map, name, tensor->second.file);
    }
  }
  uint64_t bytes = 0, elems = 0;
  for (const auto& [name, tensor] : tensors) {
    if (there.insert(name).second) Append(&map, name, tensor.file);
    bytes += tensor.bytes;
    elems += tensor.elems;
  }
  if (Json& metadata = json["metadata"]; metadata.is_object()) {
    if (metadata.contains("total_size")) metadata["total_size"] = bytes;
    if (metadata.contains("total_parameters")) metadata["total_parameters"] = elems;
  } else {
    metadata = {{"total_size", bytes}};
  }
  json["weight_map"] = std::move(map);
  return Pretty(json);
}

Result<Bytes> ConfigWithLayers(ByteSpan config, uint32_t layers, std::span<const uint32_t> kept) {
  ASSIGN_OR_RETURN(Json json, ParseObject(config, "config.json"));
  Json* of_layers = &json;
  bool done = RewriteLayers(json, layers, kept);
  for (const char* key : kInnerConfigs) {
    if (done || !json.contains(key) || !json[key].is_object()) continue;
    of_layers = &json[key];
    done = RewriteLayers(*of_layers, layers, kept);
  }
  if (done) RETURN_IF_ERROR(CheckPeriods(*of_layers, kept));
  if (done) return Pretty(json);
  std::string keys;
  for (const char* key : kLayerCounts) keys += (keys.empty() ? "" : ", ") + std::string(key);
  return Unsupported("config.json does not say under " + keys + " that the model has " + std::to_string(layers) +
                     " layers, which its tensors have");
}

}  // namespace modelstore
