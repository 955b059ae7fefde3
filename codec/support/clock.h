// The time of day (layer: codec/support). Free functions.
#pragma once

#include <cstdint>

namespace modelstore {

// Nanoseconds since 1970, now; the nearest that 64 bits hold when the clock shows a time before 1678 or after 2261.
int64_t WallClockNs();

}  // namespace modelstore
