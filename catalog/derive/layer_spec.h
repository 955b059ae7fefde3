// Which layers a variant keeps (layer: catalog/derive). Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// The layers, of `layers`, that are left when those that `spec` names are dropped; ascending. A specification is
//   20-25,28      layers and ranges of them, from 0 on
//   last:25%      the last quarter (rounded down), last:5 the last five
//   uniform:4     four, evenly spaced: the layers at (i + 1/2) / 4 of the depth
//   auto:4        those four of least influence (`influence`: of each layer; of equal ones the later first)
// Errors: InvalidArgument (malformed, out of range, nothing to drop, nothing left, influences that are missing).
Result<std::vector<uint32_t>> DropLayers(std::string_view spec, uint32_t layers, std::span<const double> influence);
// Those that a list of layers and ranges names. Errors: InvalidArgument as above, or when all are kept.
Result<std::vector<uint32_t>> KeepLayers(std::string_view spec, uint32_t layers);
// Whether DropLayers needs influences.
bool NeedsInfluence(std::string_view spec);

// "0-19,28": the shortest list.
std::string LayerList(std::span<const uint32_t> layers);

}  // namespace modelstore
