// The rows of encodings.cc, each defined by the file of its encoding (layer: codec/decode; private).
#pragma once

#include <string>
#include <string_view>

#include "codec/decode/encodings.h"

namespace modelstore {

extern const EncodingRow kRawRow, kZstdRow, kSelfRow, kDeltaRow, kCompactRow, kProjectedRow;

// Of an encoding whose blocks decode alone.
std::vector<InputNeed> NoInputs(const Frame& frame);
uint64_t CodedAndDecodedBytes(const Frame& frame, const BlockNeed& own, std::span<const SeenNeed> seen);

inline Status BadBlock(uint32_t index, std::string_view what) {
  return Corruption("block " + std::to_string(index) + ": " + std::string(what));
}

}  // namespace modelstore
