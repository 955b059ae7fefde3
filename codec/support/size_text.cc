#include "codec/support/size_text.h"

#include <charconv>
#include <limits>
#include <string>

namespace modelstore {

Result<uint64_t> ParseSize(std::string_view text) {
  struct Unit {
    std::string_view suffix;
    uint64_t factor;
  };
  constexpr Unit kUnits[] = {{"", 1},
                             {"B", 1},
                             {"K", 1ull << 10},
                             {"M", 1ull << 20},
                             {"G", 1ull << 30},
                             {"T", 1ull << 40},
                             {"KiB", 1ull << 10},
                             {"MiB", 1ull << 20},
                             {"GiB", 1ull << 30},
                             {"TiB", 1ull << 40},
                             {"kB", 1000},
                             {"KB", 1000},
                             {"MB", 1'000'000},
                             {"GB", 1'000'000'000},
                             {"TB", 1'000'000'000'000}};
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view suffix = text.substr(static_cast<size_t>(end - text.data()));
  if (error == std::errc()) {
    for (const Unit& unit : kUnits) {
      if (suffix != unit.suffix) continue;
      if (value > std::numeric_limits<uint64_t>::max() / unit.factor) break;
      return value * unit.factor;
    }
  }
  return InvalidArgument("'" + std::string(text) + "' is not a size: give bytes or a number with K, M, G or T (256M)");
}

}  // namespace modelstore
