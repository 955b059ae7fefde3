#include "catalog/derive/layer_names.h"

#include <algorithm>
#include <charconv>
#include <set>

namespace modelstore {
namespace {

constexpr std::string_view kSchemes[] = {
    "model.layers.{}.",                 // Llama, Mistral, Qwen, Gemma, Phi, OLMo, …
    "model.language_model.layers.{}.",  // the text part of multimodal ones
    "language_model.model.layers.{}.",
    "model.decoder.layers.{}.",  // OPT
    "decoder.layers.{}.",
    "transformer.h.{}.",  // GPT-2, BLOOM, Falcon, GPT-J
    "h.{}.",
    "transformer.blocks.{}.",  // MPT
    "gpt_neox.layers.{}.",     // GPT-NeoX, Pythia
    "bert.encoder.layer.{}.",
    "roberta.encoder.layer.{}.",
    "encoder.layer.{}.",  // BERT's body alone
    "distilbert.transformer.layer.{}.",
    "transformer.encoder.layers.{}.",  // ChatGLM
    "encoder.layers.{}.",
    "backbone.layers.{}.",  // Mamba
    "layers.{}.",
};
constexpr uint32_t kMaxLayers = 1 << 16;

// How many layers the names of a scheme have; 0 when there are gaps, or none.
uint32_t CountLayers(const LayerScheme& scheme, std::span<const std::string> names) {
  std::set<uint32_t> layers;
  for (const std::string& name : names) {
    if (const auto place = scheme.Find(name)) layers.insert(place->layer);
  }
  return !layers.empty() && *layers.rbegin() + 1 == layers.size() ? static_cast<uint32_t>(layers.size()) : 0;
}

std::string Example(std::span<const std::string> names) {
  return names.empty() ? "" : " ('" + names.front() + "' is a tensor)";
}

}  // namespace

std::optional<LayerScheme::Place> LayerScheme::Find(std::string_view name) const {
  if (!name.starts_with(before)) return std::nullopt;
  name.remove_prefix(before.size());
  Place place;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), place.layer);
  const auto digits = static_cast<size_t>(end - name.data());
  // As it would be written: one name a layer.
  if (error != std::errc() || place.layer >= kMaxLayers || (digits > 1 && name[0] == '0')) return std::nullopt;
  name.remove_prefix(digits);
  if (!name.starts_with(after) || name.size() == after.size()) return std::nullopt;
  place.rest = name.substr(after.size());
  return place;
}

Result<LayerScheme> ParseLayerScheme(std::string_view text) {
  const size_t at = text.find("{}");
  if (at == std::string_view::npos || text.find("{}", at + 2) != std::string_view::npos || at == 0 ||
      at + 2 == text.size())
    return InvalidArgument("layer names '" + std::string(text) +
                           "': expected the beginning of tensors' names with {} for the layer, like model.layers.{}.");
  return LayerScheme{std::string(text.substr(0, at)), std::string(text.substr(at + 2))};
}

std::span<const std::string_view> KnownLayerSchemes() { return kSchemes; }

Result<NamedLayers> FindLayersNamed(std::span<const std::string> names, std::string_view scheme) {
  ASSIGN_OR_RETURN(LayerScheme parsed, ParseLayerScheme(scheme));
  if (const uint32_t layers = CountLayers(parsed, names); layers > 0) return NamedLayers{std::move(parsed), layers};
  return Unsupported("this model has no tensors named '" + std::string(scheme) + "' with layers from 0 on for {}" +
                     Example(names));
}

Result<NamedLayers> FindLayers(std::span<const std::string> names, std::span<const std::string> more) {
  for (const std::string& text : more) {
    ASSIGN_OR_RETURN(LayerScheme scheme, ParseLayerScheme(text));
    if (const uint32_t layers = CountLayers(scheme, names); layers > 0) return NamedLayers{std::move(scheme), layers};
  }
  std::vector<NamedLayers> found;
  for (const std::string_view text : kSchemes) {
    ASSIGN_OR_RETURN(LayerScheme scheme, ParseLayerScheme(text));
    if (const uint32_t layers = CountLayers(scheme, names); layers > 0) found.push_back({std::move(scheme), layers});
  }
  const std::string remedy =
      "name it: --layer-names, or layer_names in the daemon's configuration, with the beginning of the tensors' names "
      "and {} for the layer, like model.layers.{}.";
  if (found.size() == 1) return std::move(found.front());
  if (found.empty()) {
    return Unsupported("no known naming of layers fits this model" + Example(names) + "; " + remedy);
  }
  return Unsupported("this model has two stacks of layers, '" + found[0].scheme.before + "' and '" +
                     found[1].scheme.before + "'; " + remedy);
}

}  // namespace modelstore
