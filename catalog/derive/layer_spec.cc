#include "catalog/derive/layer_spec.h"

#include <algorithm>
#include <charconv>
#include <numeric>

namespace modelstore {
namespace {

constexpr std::string_view kLast = "last:", kUniform = "uniform:", kAuto = "auto:";

Status Malformed(std::string_view spec) {
  return InvalidArgument("layers '" + std::string(spec) +
                         "': expected a list like 20-25,28, or last:25%, last:5, uniform:4 or auto:4");
}

bool TakeNumber(std::string_view& text, uint32_t* number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  if (error != std::errc() || end == text.data()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

// Marks the layers of a list; each may be named once.
Status MarkList(std::string_view spec, std::vector<bool>* marked) {
  std::string_view rest = spec;
  while (true) {
    uint32_t first = 0;
    if (!TakeNumber(rest, &first)) return Malformed(spec);
    uint32_t last = first;
    if (rest.starts_with('-')) {
      rest.remove_prefix(1);
      if (!TakeNumber(rest, &last) || last < first) return Malformed(spec);
    }
    if (last >= marked->size())
      return InvalidArgument("layers '" + std::string(spec) + "': there is no layer " + std::to_string(last) +
                             "; the model has " + std::to_string(marked->size()) + ", from 0 to " +
                             std::to_string(marked->size() - 1));
    for (uint32_t layer = first; layer <= last; ++layer) {
      if ((*marked)[layer])
        return InvalidArgument("layers '" + std::string(spec) + "': layer " + std::to_string(layer) +
                               " is named twice");
      (*marked)[layer] = true;
    }
    if (rest.empty()) return OkStatus();
    if (!rest.starts_with(',')) return Malformed(spec);
    rest.remove_prefix(1);
  }
}

// A count, or a share when `may_be_share`, of `layers`.
Result<uint32_t> TakeCount(std::string_view spec, std::string_view text, uint32_t layers, bool may_be_share) {
  uint32_t count = 0;
  if (!TakeNumber(text, &count)) return Malformed(spec);
  if (may_be_share && text == "%") {
    if (count > 100) return Malformed(spec);
    return static_cast<uint32_t>(uint64_t{layers} * count / 100);
  }
  if (!text.empty()) return Malformed(spec);
  if (count > layers)
    return InvalidArgument("layers '" + std::string(spec) + "': the model has only " + std::to_string(layers));
  return count;
}

std::vector<uint32_t> Unmarked(const std::vector<bool>& marked) {
  std::vector<uint32_t> kept;
  for (uint32_t layer = 0; layer < marked.size(); ++layer) {
    if (!marked[layer]) kept.push_back(layer);
  }
  return kept;
}

}  // namespace

bool NeedsInfluence(std::string_view spec) { return spec.starts_with(kAuto); }

Result<std::vector<uint32_t>> DropLayers(std::string_view spec, uint32_t layers, std::span<const double> influence) {
  std::vector<bool> dropped(layers);
  if (spec.starts_with(kLast)) {
    ASSIGN_OR_RETURN(const uint32_t count, TakeCount(spec, spec.substr(kLast.size()), layers, true));
    std::fill(dropped.end() - static_cast<ptrdiff_t>(count), dropped.end(), true);
  } else if (spec.starts_with(kUniform)) {
    ASSIGN_OR_RETURN(const uint32_t count, TakeCount(spec, spec.substr(kUniform.size()), layers, false));
    for (uint64_t i = 0; i < count; ++i) dropped[(2 * i + 1) * layers / (2 * count)] = true;
  } else if (spec.starts_with(kAuto)) {
    ASSIGN_OR_RETURN(const uint32_t count, TakeCount(spec, spec.substr(kAuto.size()), layers, false));
    if (influence.size() != layers)
      return InvalidArgument("layers '" + std::string(spec) +
                             "': the influence of each layer is needed; give --moments");
    std::vector<uint32_t> order(layers);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return influence[a] != influence[b] ? influence[a] < influence[b] : a > b;
    });
    for (uint32_t i = 0; i < count; ++i) dropped[order[i]] = true;
  } else {
    RETURN_IF_ERROR(MarkList(spec, &dropped));
  }
  std::vector<uint32_t> kept = Unmarked(dropped);
  if (kept.empty()) return InvalidArgument("layers '" + std::string(spec) + "': no layer would be left");
  if (kept.size() == layers) return InvalidArgument("layers '" + std::string(spec) + "': no layer would be dropped");
  return kept;
}

Result<std::vector<uint32_t>> KeepLayers(std::string_view spec, uint32_t layers) {
  std::vector<bool> kept(layers);
  RETURN_IF_ERROR(MarkList(spec, &kept));
  kept.flip();
  std::vector<uint32_t> out = Unmarked(kept);
  if (out.size() == layers) return InvalidArgument("layers '" + std::string(spec) + "': no layer would be dropped");
  return out;
}

std::string LayerList(std::span<const uint32_t> layers) {
  std::string list;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    list += (list.empty() ? "" : ",") + std::to_string(layers[i]);
    if (end - i > 1) list += "-" + std::to_string(layers[end - 1]);
    i = end;
  }
  return list;
}

}  // namespace modelstore
