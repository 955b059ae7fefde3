// The layer in a tensor's name (layer: catalog/derive). Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// What an adapter's tensors have before the names of those that they change.
inline constexpr std::string_view kAdapterPrefix = "base_model.model.";

// A scheme is a prefix with {} for the layer's number: "model.layers.{}.".
struct LayerScheme {
  std::string before, after;

  // The layer of a name and what is behind its number; nullopt when the name is of no layer.
  struct Place {
    uint32_t layer = 0;
    std::string_view rest;  // of the name
  };
  std::optional<Place> Find(std::string_view name) const;
  std::string NameOf(uint32_t layer, std::string_view rest) const {
    return before + std::to_string(layer) + after + std::string(rest);
  }
};

// Errors: InvalidArgument (not one {}, nothing around it).
Result<LayerScheme> ParseLayerScheme(std::string_view text);
// Those that are known: Llama and its kin, OPT, GPT-2, GPT-NeoX, BERT, …
std::span<const std::string_view> KnownLayerSchemes();

struct NamedLayers {
  LayerScheme scheme;
  uint32_t layers = 0;  // numbered from 0 on without a gap
};
// The scheme of a checkpoint with tensors of these names; `more`: tried first. Errors: Unsupported (none fits, or
// several do as in encoder-decoders: says how to name one), InvalidArgument (a malformed one in `more`).
Result<NamedLayers> FindLayers(std::span<const std::string> names, std::span<const std::string> more);
// The same with this scheme alone.
Result<NamedLayers> FindLayersNamed(std::span<const std::string> names, std::string_view scheme);

}  // namespace modelstore
