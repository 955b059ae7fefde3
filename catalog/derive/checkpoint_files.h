// The JSON of a checkpoint folder in the hub's format, read and rewritten (layer: catalog/derive). Pure.
//
// Key order and unknown keys survive. What is read was stored by somebody: everything is checked, and what is wrong
// with it is Unsupported: the store is sound that has it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// What a parser says of a stored file, which may be as malformed as it was pushed: Unsupported instead of Corruption.
Status BadSource(const Status& status);

// JSON of a stored model is parsed into a tree and written again, both recursively: it may not be nested deeply.
// Errors: Unsupported.
Status CheckNesting(ByteSpan json, std::string_view what);
// The error for a text that is no JSON object: says where it stops being one.
Status NoJsonObject(ByteSpan text, std::string_view what);

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
// `header`: the first SafetensorsHeaderBytes() bytes of a file of `file_bytes`. Errors:
// Unsupported.
Result<SafetensorsHeader> ReadSafetensorsHeader(ByteSpan header, uint64_t file_bytes);
// The header of a file whose tensors follow each other without gaps; a multiple of 8 bytes. Errors: ResourceExhausted
// when it is larger than the format allows.
Result<Bytes> WriteSafetensorsHeader(const SafetensorsHeader& header);

// `index` (model.safetensors.index.json) with this weight_map, in the order of its old one and new names after it, and
// the totals of these tensors. Errors: Unsupported.
struct IndexEntry {
  std::string file;
  uint64_t bytes = 0, elems = 0;
};
Result<Bytes> RewriteIndex(ByteSpan index, const std::map<std::string, IndexEntry>& tensors);

}  // namespace modelstore
