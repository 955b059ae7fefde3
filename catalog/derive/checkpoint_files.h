// The JSON of a checkpoint folder in the hub's format, read and rewritten (layer: catalog/derive). Pure.
//
// Key order and unknown keys survive. What is read was stored by somebody: everything is checked.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// JSON of a stored model is parsed into a tree and written again, both recursively: it may not be nested deeply.
// Errors: Corruption.
Status CheckNesting(ByteSpan json, std::string_view what);

// A tensor of a safetensors file, as its header says.
struct HeaderTensor {
  std::string name, dtype;  // "BF16"; also types that this build does not know
  std::vector<uint64_t> shape;
  uint64_t begin = 0, bytes = 0;  // in the file; `begin` is ignored when a header is written

  uint64_t elems() const;
};
struct SafetensorsHeader {
  std::string metadata;               // JSON of __metadata__; "" for none
  std::vector<HeaderTensor> tensors;  // in the order of their bytes
};
// `header`: the first SafetensorsHeaderBytes() bytes of a file of `file_bytes`. Errors: Corruption.
Result<SafetensorsHeader> ReadSafetensorsHeader(ByteSpan header, uint64_t file_bytes);
// The header of a file whose tensors follow each other without gaps; a multiple of 8 bytes. Errors: ResourceExhausted
// when it is larger than the format allows.
Result<Bytes> WriteSafetensorsHeader(const SafetensorsHeader& header);

// The files that an index (model.safetensors.index.json) names. Errors: Corruption.
Result<std::set<std::string>> IndexedFiles(ByteSpan index);
// `index` (model.safetensors.index.json) with this weight_map, in the order of its old one and new names after it, and
// the totals of these tensors. Errors: Corruption.
struct IndexEntry {
  std::string file;
  uint64_t bytes = 0, elems = 0;
};
Result<Bytes> RewriteIndex(ByteSpan index, const std::map<std::string, IndexEntry>& tensors);

// A configuration whose model has `layers` of which `kept` are left: its count, lists with an entry a layer, and lists
// of layers. Errors: Corruption (no JSON object), Unsupported (no count of that many layers: says which keys; kinds of
// layers that follow from their numbers, and would become others).
Result<Bytes> ConfigWithLayers(ByteSpan config, uint32_t layers, std::span<const uint32_t> kept);

}  // namespace modelstore
