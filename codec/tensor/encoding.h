// How tensors are stored: the table that says of each encoding what everybody needs to know who does not decode it
// (layer: codec/tensor). What decodes and checks it is its row in codec/decode/encodings.h. Numbers are on disk: never
// renumber. docs/format.md, "Frames".
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace modelstore {

enum class Encoding : uint8_t {
  kRaw = 0,
  kZstd = 1,       // each block is a zstd frame
  kSelf = 2,       // entropy-coded by itself
  kDelta = 3,      // entropy-coded difference to a prediction that is made from the base
  kCompact = 4,    // rebuilt from the base, low-rank factors, a residual and scales
  kProjected = 5,  // W diag(g) R, computed from a stored weight, a norm and axes
};

// What another tensor is to one that is made from it.
enum class InputRole : uint8_t { kBase, kFactors, kResidual, kScales, kWeight, kAxes, kNorm };

// "view of the weight", for messages.
std::string_view InputName(InputRole role);
// An input that is stored for the tensor's sake and counts as its own size: all but the base, a weight and a norm,
// which are another model's.
bool IsOwnInput(InputRole role);

// The line of a storage report that a tensor's bytes are counted in.
enum class StorageLevel : uint8_t { kRaw, kSelf, kDelta, kCompact, kProjected };

struct EncodingFacts {
  Encoding encoding;
  std::string_view name;  // in `show`
  StorageLevel level;
  bool has_blocks;   // false: a tensor of this encoding is computed from its inputs
  bool may_be_base;  // other tensors may be stored against it; it has edges to its own base and a sketch
  std::span<const InputRole> roles;  // of its inputs, in the order of its record
};

// Null when `number` is no encoding of this version.
const EncodingFacts* FindEncoding(uint8_t number);
const EncodingFacts& FactsOf(Encoding encoding);

}  // namespace modelstore
