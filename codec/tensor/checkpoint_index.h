// The index of a checkpoint in several files (layer: codec/tensor): model.safetensors.index.json and its kin say in
// weight_map which file has which tensor. Parses untrusted bytes, without recursion and without a tree.
#pragma once

#include <set>
#include <string>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// The files that an index names, as it names them: they may be anywhere, or nowhere. Errors: Corruption (no JSON
// object, no weight_map, a file's name that is no string).
Result<std::set<std::string>> IndexedFiles(ByteSpan index);

}  // namespace modelstore
