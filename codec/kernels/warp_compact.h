// Rebuilding elements of a compact tensor by a warp (layer: codec/kernels). docs/format.md, "Compact tensors".
//
// Two steps: tokens of factors become floats (UnpackFactors), then each lane makes four elements in a row at a time
// (RebuildTile). Where the four share a row, a token of the residual and a step, and lie aligned in memory, they are
// loaded and stored at once; where they do not, one by one. Sums are in the format's order. All sizes are the caller's
// to check (codec/device).
#pragma once

#include <cstdint>

#include "codec/kernels/compact_dither.h"
#include "codec/kernels/compact_rebuild.h"
#include "codec/kernels/compact_round.h"
#include "codec/kernels/level_tokens.h"
#include "codec/kernels/value_map.h"
#include "codec/kernels/warp.h"

namespace modelstore {

// A level of each token by its pattern, the first in the lowest byte.
struct WarpTokens {
  const uint16_t* pairs;
  const uint32_t* quads;
};
inline constexpr uint32_t kWarpTokenPatterns = 1 << 16;

struct WarpFactors {
  const uint16_t* tokens;
  uint32_t first_level;  // of the first token's
  uint32_t levels;
  const float* scales;  // one for each rank, cyclically; null: none
  uint32_t rank;
  float* out;  // levels of them
};

inline constexpr uint32_t kNoFactors = 0xffffffff;
inline constexpr uint32_t kTileElems = 4096;

// Elements [begin, end) of a segment.
struct WarpPiece {
  const void* prediction;  // element begin, in the dtype
  void* out;
  const float* right;           // rank x columns; null: no row has factors
  const float* weights;         // scale x left level: rank of them for each row with factors
  const uint32_t* factor_rows;  // of each row from first_row on: its place in `weights`, or kNoFactors; null: all have
  const uint16_t* residual;     // tokens from the one of element `begin` on; null: none
  const float* steps;           // from that of element `begin` on
  uint64_t begin, end;
  uint64_t columns;
  uint64_t first_row;    // of element `begin`
  uint64_t group_elems;  // that share a step
  uint64_t first_elem;   // of the segment, in the tensor
  uint32_t rank;
  uint32_t seed;
  float biases[3];
  bool is_wide;  // the residual's tokens hold two levels
  bool is_nearest;
  bool is_aligned;  // quadruples: columns, begin and group_elems are multiples of 4, memory of 4 elements
};

namespace warp_compact {

MODELSTORE_DEVICE bool IsToken(uint16_t pattern, uint32_t tokens) { return SelfValue(pattern, false) < tokens; }

// a + w v of a product that is exact.
MODELSTORE_DEVICE float MulAdd(float w, float v, float a) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(w, v, a);
#else
  return a + w * v;
#endif
}

MODELSTORE_DEVICE int LevelAt(uint32_t levels, uint32_t index) {
  return static_cast<int8_t>(static_cast<uint8_t>(levels >> (8 * index)));
}

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

struct Lane {
  uint64_t row;
  uint64_t column;
  bool bad;
};

}  // namespace warp_compact

// False when a token stands for no levels.
template <typename Warp>
MODELSTORE_DEVICE bool UnpackFactors(const WarpTokens& tokens, const WarpFactors& factors) {
  struct Lane {
    bool bad;
  };
  typename Warp::template Lanes<Lane> lanes;
  Warp::Each(lanes, [&](unsigned lane, Lane& l) {
    l.bad = false;
    for (uint32_t i = lane; i < factors.levels; i += kLanes) {
      const uint32_t at = factors.first_level + i;
      const uint16_t pattern = factors.tokens[at / 2];
      l.bad |= !warp_compact::IsToken(pattern, kPairTokens);
      const float level = static_cast<float>(warp_compact::LevelAt(tokens.pairs[pattern], at % 2));
      factors.out[i] = factors.scales == nullptr ? level : factors.scales[i % factors.rank] * level;
    }
  });
  return Warp::Ballot(lanes, [](const Lane& l) { return l.bad; }) == 0;
}

// Elements [begin, end) of the piece's segment, begin being the piece's or a multiple of 4 behind it. False when a
// token stands for no levels; `out` then holds garbage. U: the unsigned integer of the dtype's width.
template <typename Warp, DType kDType, typename U>
MODELSTORE_DEVICE bool RebuildTile(const WarpTokens& tokens, const WarpPiece& piece, uint64_t begin, uint64_t end) {
  using Lane = warp_compact::Lane;
  using Patterns = warp_compact::Quad<U>;
  using Floats = warp_compact::Quad<float>;
  constexpr uint32_t kQuadElems = 4;
  typename Warp::template Lanes<Lane> lanes;
  const uint64_t first_token = piece.begin / (piece.is_wide ? 2 : 4);
  const uint64_t first_group = piece.begin / piece.group_elems;
  const uint32_t dither_key = DitherKey(piece.first_elem + begin, piece.seed);
  const bool one_key = (piece.first_elem + begin) >> 32 == (piece.first_elem + end - 1) >> 32;

  Warp::Each(lanes, [&](unsigned lane, Lane& l) {
    const uint64_t at = begin + kQuadElems * lane;
    l.row = at / piece.columns;
    l.column = at - l.row * piece.columns;
    l.bad = false;
  });
  for (uint64_t chunk = begin; chunk < end; chunk += kQuadElems * kLanes) {
    Warp::Each(lanes, [&](unsigned lane, Lane& l) {
      const uint64_t first = chunk + kQuadElems * lane;
      if (first >= end) return;
      const auto dithered = [&](uint64_t f) {
        if (piece.is_nearest) return kHalf;
        const uint64_t e = piece.first_elem + f;
        return DitherOf(static_cast<uint32_t>(e), one_key ? dither_key : DitherKey(e, piece.seed));
      };
      const auto factors_of = [&](uint64_t row) -> const float* {
        if (piece.right == nullptr) return nullptr;
        const uint64_t r = row - piece.first_row;
        const uint32_t place = piece.factor_rows == nullptr ? static_cast<uint32_t>(r) : piece.factor_rows[r];
        return place == kNoFactors ? nullptr : piece.weights + static_cast<uint64_t>(place) * piece.rank;
      };
      const auto step_of = [&](uint64_t f) { return piece.steps[f / piece.group_elems - first_group]; };
      if (piece.is_aligned && first + kQuadElems <= end) {
        Floats sums = {{0, 0, 0, 0}};
        if (const float* weights = factors_of(l.row); weights != nullptr) {
          const float* right = piece.right + l.column;
          for (uint32_t k = 0; k < piece.rank; ++k, right += piece.columns) {
            const Floats v = *reinterpret_cast<const Floats*>(right);
            const float w = weights[k];
            for (unsigned t = 0; t < kQuadElems; ++t) sums.v[t] = warp_compact::MulAdd(w, v.v[t], sums.v[t]);
          }
        }
        if (piece.residual != nullptr) {
          uint32_t levels;
          if (piece.is_wide) {
            const uint16_t* at = piece.residual + (first / 2 - first_token);
            l.bad |= !warp_compact::IsToken(at[0], kPairTokens) | !warp_compact::IsToken(at[1], kPairTokens);
            levels = tokens.pairs[at[0]] | static_cast<uint32_t>(tokens.pairs[at[1]]) << 16;
          } else {
            const uint16_t pattern = piece.residual[first / 4 - first_token];
            l.bad |= !warp_compact::IsToken(pattern, kQuadTokens);
            levels = tokens.quads[pattern];
          }
          if (levels != 0) {
            const float step = step_of(first);
            for (unsigned t = 0; t < kQuadElems; ++t)
              sums.v[t] += ResidualValue(warp_compact::LevelAt(levels, t), piece.biases, step);
          }
        }
        const Patterns p =
            *reinterpret_cast<const Patterns*>(static_cast<const U*>(piece.prediction) + (first - piece.begin));
        Patterns rounded;
        for (unsigned t = 0; t < kQuadElems; ++t)
          rounded.v[t] = RoundElement<kDType, U>(p.v[t], sums.v[t], dithered(first + t));
        *reinterpret_cast<Patterns*>(static_cast<U*>(piece.out) + (first - piece.begin)) = rounded;
      } else {
        uint64_t row = l.row, column = l.column;
        for (uint64_t f = first; f < first + kQuadElems && f < end; ++f) {
          float sum = 0;
          if (const float* weights = factors_of(row); weights != nullptr) {
            for (uint32_t k = 0; k < piece.rank; ++k)
              sum = warp_compact::MulAdd(weights[k], piece.right[k * piece.columns + column], sum);
          }
          if (piece.residual != nullptr) {
            const uint32_t per_token = piece.is_wide ? 2 : 4;
            const uint16_t pattern = piece.residual[f / per_token - first_token];
            l.bad |= !warp_compact::IsToken(pattern, piece.is_wide ? kPairTokens : kQuadTokens);
            const uint32_t levels = piece.is_wide ? tokens.pairs[pattern] : tokens.quads[pattern];
            sum += ResidualValue(warp_compact::LevelAt(levels, static_cast<uint32_t>(f % per_token)), piece.biases,
                                 step_of(f));
          }
          const uint64_t at = f - piece.begin;
          static_cast<U*>(piece.out)[at] =
              RoundElement<kDType, U>(static_cast<const U*>(piece.prediction)[at], sum, dithered(f));
          if (++column == piece.columns) {
            column = 0;
            ++row;
          }
        }
      }
      l.column += kQuadElems * kLanes;
      if (l.column >= piece.columns) {
        // Fewer than 2^32 elements from one chunk to the next, or few columns: a division of 32 bits does.
        if (piece.columns > kQuadElems * kLanes) {
          l.column -= piece.columns;
          ++l.row;
        } else {
          const uint32_t columns = static_cast<uint32_t>(piece.columns), at = static_cast<uint32_t>(l.column);
          l.row += at / columns;
          l.column = at % columns;
        }
      }
    });
  }
  return Warp::Ballot(lanes, [](const Lane& l) { return l.bad; }) == 0;
}

}  // namespace modelstore
