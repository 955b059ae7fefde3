#include "codec/support/clock.h"

#include <ctime>
#include <limits>

namespace modelstore {

int64_t WallClockNs() {
  constexpr int64_t kNsPerSecond = 1'000'000'000;
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  int64_t ns = 0;
  if (__builtin_mul_overflow(static_cast<int64_t>(now.tv_sec), kNsPerSecond, &ns) ||
      __builtin_add_overflow(ns, static_cast<int64_t>(now.tv_nsec), &ns))
    return now.tv_sec < 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
  return ns;
}

}  // namespace modelstore
