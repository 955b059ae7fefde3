// The time of day and times of files (layer: codec/support). Pure functions but for the clock itself.
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>

namespace modelstore {

// Nanoseconds since 1970 of any time that a file can have: 64 bits end in 2262, file systems go on.
__extension__ using TimeNs = __int128;

inline constexpr int64_t kNsPerSecond = 1'000'000'000;

inline TimeNs ToTimeNs(const timespec& time) { return TimeNs{time.tv_sec} * kNsPerSecond + time.tv_nsec; }

// Of a time whose seconds 64 bits hold.
inline timespec ToTimespec(TimeNs time) {
  const TimeNs rest = time % kNsPerSecond, ns = rest < 0 ? rest + kNsPerSecond : rest;
  return {static_cast<time_t>((time - ns) / kNsPerSecond), static_cast<long>(ns)};
}

// The nearest time that 64 bits of nanoseconds hold.
int64_t ClampToInt64(TimeNs time);

// Decimal digits, after a '-' before 1970.
std::string ToText(TimeNs time);
// Of a time whose seconds 64 bits hold.
std::optional<TimeNs> ParseTimeNs(std::string_view text);

// Now; the nearest that 64 bits hold when the clock shows a time before 1678 or after 2261.
int64_t WallClockNs();

}  // namespace modelstore
