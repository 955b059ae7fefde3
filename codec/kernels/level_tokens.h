// Tokens: small groups of quantization levels as one 16-bit value (layer: codec/kernels). docs/format.md, "Tokens".
//
// All groups (pairs of levels in [-127, 127], quadruples of levels in [-7, 7]) are ordered by their sum of squares, and
// a group's rank in that order is what is entropy-coded: for independent levels of one normal distribution equal sums
// are equally likely, so ranks become rarer as they grow and a few intervals describe them. A token is stored as the
// U16 pattern whose coded value (SelfValue) is the rank. Tables are built at first use (some milliseconds, 0.6 MB),
// then read only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelstore {

// Ranks in use: 255^2 pairs, 15^4 quadruples.
inline constexpr uint32_t kPairTokens = 255 * 255;
inline constexpr uint32_t kQuadTokens = 15 * 15 * 15 * 15;
inline constexpr int kMaxPairLevel = 127;
inline constexpr int kMaxQuadLevel = 7;

// levels: 2 or 4 a token (`group`). Precondition: levels within the group's range.
void LevelsToTokens(const int8_t* levels, size_t tokens, unsigned group, uint16_t* patterns);
// False when a token stands for no group; its levels are then 0.
// `patterns` need no alignment.
bool TokensToLevels(const std::byte* patterns, size_t tokens, unsigned group, int8_t* levels);

}  // namespace modelstore
