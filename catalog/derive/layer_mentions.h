// Layers that a text names, renumbered: modules' names, and patterns of them (layer: catalog/derive; docs/derive.md).
// Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/derive/layer_names.h"
#include "codec/support/status.h"

namespace modelstore {

// What of a model is of another one inside it, by a part of its name: "vision_tower", "mtp".
bool IsOfOtherModel(std::string_view name);

// Which layers of a checkpoint are kept, and how its tensors are named.
struct LayerCut {
  LayerScheme scheme;
  uint32_t layers = 0;
  std::vector<uint32_t> kept;            // ascending
  std::span<const std::string> tensors;  // all names of the checkpoint

  // The number that a kept layer gets; nullopt for a dropped one.
  std::optional<uint32_t> NumberOf(uint64_t layer) const;
};

// Not thread-safe.
class LayerMentions {
 public:
  explicit LayerMentions(const LayerCut& cut) : cut_(&cut) {}

  // The text for the variant; nullopt when all layers that it names are dropped. A text is
  //   a module's name        model.layers.3.mlp        also with another beginning, as quantization settings have it
  //   a pattern of names     re:.*layers\.(3|5)\.mlp   a regular expression or one with *; what is for any layer
  //                                                    (\d+, .*) stays as it is
  //   +:.*\.3\..*               a number without a stack's word is the layer's where names have no other numbers
  //   anything else, which stays as it is; so do names of other stacks of layers that the checkpoint has.
  // Errors: Unsupported (layers named in a way that cannot be renumbered with certainty).
  Result<std::optional<std::string>> Renumber(std::string_view text);

  // Whether tensors have layers of that name ("vision.encoder.layers.") which are not those of the scheme.
  bool IsOtherStack(const std::string& prefix);
  // Whether parts of tensors' names besides the layer are numbers: experts, other stacks.
  bool HasOtherNumbers();

 private:
  const LayerCut* cut_;
  std::map<std::string, bool> other_stacks_;  // what IsOtherStack answered
  std::optional<bool> has_other_numbers_;     // what HasOtherNumbers answered
};

}  // namespace modelstore
