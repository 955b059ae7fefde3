#include "codec/kernels/level_tokens.h"

#include <array>
#include <cstring>
#include <vector>

#include "codec/kernels/value_map.h"

namespace modelstore {
namespace {

constexpr uint16_t kNoGroup = 0xffff;  // its rank exceeds every group's

// The groups of kGroup levels in [-kMax, kMax]. A group's code counts its levels in base 2 kMax + 1, the first most
// significant: codes ascend as groups do.
template <unsigned kGroup, int kMax>
class TokenTables {
 public:
  using Packed = std::array<int8_t, kGroup>;

  static const TokenTables& Get() {
    static const TokenTables tables;
    return tables;
  }

  uint16_t PatternOf(const int8_t* levels) const {
    uint32_t code = 0;
    for (unsigned i = 0; i < kGroup; ++i) code = code * kBase + static_cast<uint32_t>(levels[i] + kMax);
    return pattern_of_code_[code];
  }

  bool Unpack(const std::byte* patterns, size_t tokens, int8_t* levels) const {
    uint16_t last = 0;  // rank; in a loop of its own, which the compiler makes vectors of
    for (size_t t = 0; t < tokens; ++t) {
      const uint16_t rank = SelfValue(PatternAt(patterns, t), false);
      last = rank > last ? rank : last;
    }
    for (size_t t = 0; t < tokens; ++t)
      std::memcpy(levels + t * kGroup, &levels_of_pattern_[PatternAt(patterns, t)], kGroup);
    return last < kCodes;
  }

 private:
  static constexpr uint32_t kBase = 2 * kMax + 1;
  static constexpr uint32_t kCodes = [] {
    uint32_t n = 1;
    for (unsigned i = 0; i < kGroup; ++i) n *= kBase;
    return n;
  }();
  static constexpr uint32_t kLargestSum = kGroup * kMax * kMax;
  static_assert(kCodes <= kNoGroup);

  static uint16_t PatternAt(const std::byte* patterns, size_t index) {
    uint16_t pattern;
    std::memcpy(&pattern, patterns + index * sizeof(pattern), sizeof(pattern));
    return pattern;
  }

  static Packed LevelsOfCode(uint32_t code) {
    Packed levels;
    for (unsigned i = kGroup; i-- > 0; code /= kBase)
      levels[i] = static_cast<int8_t>(static_cast<int>(code % kBase) - kMax);
    return levels;
  }

  TokenTables() : pattern_of_code_(kCodes), levels_of_pattern_(size_t{kNoGroup} + 1) {
    std::vector<uint32_t> sums(kCodes), next(kLargestSum + 2);
    for (uint32_t code = 0; code < kCodes; ++code) {
      for (const int level : LevelsOfCode(code)) sums[code] += static_cast<uint32_t>(level * level);
      ++next[sums[code] + 1];
    }
    for (uint32_t sum = 0; sum <= kLargestSum; ++sum) next[sum + 1] += next[sum];
    for (uint32_t code = 0; code < kCodes; ++code) {
      const uint16_t pattern = FromSelfValue(static_cast<uint16_t>(next[sums[code]]++), false);
      pattern_of_code_[code] = pattern;
      levels_of_pattern_[pattern] = LevelsOfCode(code);
    }
  }

  std::vector<uint16_t> pattern_of_code_;
  std::vector<Packed> levels_of_pattern_;
};

using Pairs = TokenTables<2, kMaxPairLevel>;
using Quads = TokenTables<4, kMaxQuadLevel>;

}  // namespace

void LevelsToTokens(const int8_t* levels, size_t tokens, unsigned group, uint16_t* patterns) {
  if (group == 2) {
    const Pairs& tables = Pairs::Get();
    for (size_t t = 0; t < tokens; ++t) patterns[t] = tables.PatternOf(levels + t * 2);
  } else {
    const Quads& tables = Quads::Get();
    for (size_t t = 0; t < tokens; ++t) patterns[t] = tables.PatternOf(levels + t * 4);
  }
}

bool TokensToLevels(const std::byte* patterns, size_t tokens, unsigned group, int8_t* levels) {
  return group == 2 ? Pairs::Get().Unpack(patterns, tokens, levels) : Quads::Get().Unpack(patterns, tokens, levels);
}

}  // namespace modelstore
