#include "codec/support/clock.h"

#include <algorithm>
#include <limits>

namespace modelstore {

int64_t ClampToInt64(TimeNs time) {
  return static_cast<int64_t>(
      std::clamp(time, TimeNs{std::numeric_limits<int64_t>::min()}, TimeNs{std::numeric_limits<int64_t>::max()}));
}

std::string ToText(TimeNs time) {
  const bool is_negative = time < 0;
  std::string digits;
  do {
    const int digit = static_cast<int>(time % 10);
    digits.push_back(static_cast<char>('0' + (digit < 0 ? -digit : digit)));
    time /= 10;
  } while (time != 0);
  if (is_negative) digits.push_back('-');
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::optional<TimeNs> ParseTimeNs(std::string_view text) {
  constexpr TimeNs kMin = TimeNs{std::numeric_limits<int64_t>::min()} * kNsPerSecond;
  constexpr TimeNs kMax = TimeNs{std::numeric_limits<int64_t>::max()} * kNsPerSecond + kNsPerSecond - 1;
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  if (text.empty()) return std::nullopt;
  TimeNs time = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    time = time * 10 + (is_negative ? '0' - c : c - '0');
    if (time < kMin || time > kMax) return std::nullopt;
  }
  return time;
}

int64_t WallClockNs() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return ClampToInt64(ToTimeNs(now));
}

}  // namespace modelstore
