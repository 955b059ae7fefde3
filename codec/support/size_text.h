// Numbers of bytes as people write them, on the command line and in the configuration (layer: codec/support).
#pragma once

#include <cstdint>
#include <string_view>

#include "codec/support/status.h"

namespace modelstore {

// A number of bytes: digits and an optional unit. K, M, G, T and KiB … are powers of 1024, kB, MB, GB, TB powers of
// 1000. Errors: InvalidArgument (also when it exceeds 64 bits).
Result<uint64_t> ParseSize(std::string_view text);

}  // namespace modelstore
