#include "catalog/derive/checkpoint_files.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "codec/json/json_text.h"
#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMetadata = "__metadata__";

Result<Json> ParseObject(ByteSpan text, std::string_view what) {
  RETURN_IF_ERROR(CheckNesting(text, what));
  Json parsed = TryParseOrderedJson(AsChars(text));
  if (!parsed.is_object()) return NoJsonObject(text, what);
  return parsed;
}

Bytes ToBytes(const std::string& text) {
  const ByteSpan bytes = AsBytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

Bytes Pretty(const Json& document) { return ToBytes(JsonText(document, JsonStyle::kIndented) + "\n"); }

// A key that the object has not yet, at its end: looking for it takes as long as the object is.
void Append(Json* object, const std::string& key, Json value) {
  object->get_ref<Json::object_t&>().push_back({key, std::move(value)});
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
      if (++levels > kMostLevels) return Unsupported(std::string(what) + " is nested too deeply");
    } else if (c == '}' || c == ']') {
      --levels;
    }
  }
  return OkStatus();
}

Status BadSource(const Status& status) {
  return status.code() == StatusCode::kCorruption ? Unsupported(std::string(status.message())) : status;
}

Status NoJsonObject(ByteSpan text, std::string_view what) {
  std::string where;
  try {
    const Json parsed = ParseOrderedJson(AsChars(text));
  } catch (const Json::parse_error& error) {
    where =
        ": it breaks off or goes wrong at byte " + std::to_string(error.byte) + " of " + std::to_string(text.size());
  }
  return Unsupported(std::string(what) + " is no JSON object" + where + "; mend it in the source and push that again");
}

uint64_t HeaderTensor::elems() const {
  uint64_t count = 1;
  for (const uint64_t dim : shape) count *= dim;
  return count;
}

Result<SafetensorsHeader> ReadSafetensorsHeader(ByteSpan header, uint64_t file_bytes) {
  // Bounds and rules are checked there; this reads what it does not keep.
  const Result<TensorIndex> index = ParseSafetensorsHeader(header, file_bytes);
  if (!index.ok()) return BadSource(index.status());
  // Sorted by name: there may be many.
  const auto json = TryParseJson(AsChars(header.subspan(kSafetensorsLengthBytes)));
  if (!json.is_object()) return Unsupported("the safetensors header is no JSON object");
  SafetensorsHeader out;
  if (const auto metadata = json.find(kMetadata); metadata != json.end()) out.metadata = JsonText(*metadata);
  for (const TensorEntry& entry : index->tensors) {
    const nlohmann::json& tensor = json.at(entry.name);
    out.tensors.push_back({entry.name, tensor.at("dtype").get<std::string>(),
                           tensor.at("shape").get<std::vector<uint64_t>>(), entry.begin, entry.end - entry.begin});
  }
  return out;
}

Result<Bytes> WriteSafetensorsHeader(const SafetensorsHeader& header) {
  Json json = Json::object();
  if (!header.metadata.empty()) json[kMetadata] = ParseOrderedJson(header.metadata);
  uint64_t at = 0;
  for (const HeaderTensor& tensor : header.tensors) {
    Append(&json, tensor.name,
           {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes}}});
    at += tensor.bytes;
  }
  std::string text = JsonText(json);
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kSafetensorsMaxHeaderBytes)
    return ResourceExhausted("a safetensors header of " + std::to_string(text.size()) + " bytes is too large");
  ByteWriter out;
  out.U64(text.size());
  out.Append(AsBytes(text));
  return out.Release();
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

}  // namespace modelstore
