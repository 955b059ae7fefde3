// Pack and Unpack: short byte strings (bodies of records) as one zstd frame each (layer: codec/support).
//
// Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

inline constexpr uint64_t kMaxUnpackedBytes = 64ull << 20;
// What is packed into less than a 4096th is unpacked up to this size only.
inline constexpr uint64_t kMaxAmplifiedBytes = 4ull << 20;

// Appends varint bytes.size() and a zstd frame with a checksum. The same input gives the same output, but another build
// of zstd may give another.
void AppendPacked(ByteSpan bytes, ByteWriter& out);
// What AppendPacked appended, being all that `in` has left. Errors: Corruption (also when more than kMaxUnpackedBytes
// or what the packed bytes could sanely hold is asked for, before that is allocated).
Result<Bytes> TakePacked(ByteReader& in);

}  // namespace modelstore
