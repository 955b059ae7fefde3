// Rebuilding elements of a compact tensor by a warp (layer: codec/kernels). docs/format.md, "Compact tensors".
//
// Two steps: tokens of factors become floats (UnpackFactors), then each lane makes eight elements in a row at a time
// (RebuildTile). Where the eight share a row and a step, begin with a token of the residual, and lie aligned in memory,
// they are loaded and stored at once; where they do not, one by one. Sums are in the format's order. All sizes are the
// caller's to check (codec/device).
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

inline constexpr uint32_t kWarpUnits = 256;
inline constexpr uint32_t kRunElems = 8;  // that a lane makes at once

// Elements of a segment, at most a block's.
struct WarpPiece {
  const void* prediction;  // in the dtype
  void* out;
  const float* right;           // rank x columns; null: no row has factors
  const float* weights;         // scale x left level: rank of them for each row with factors
  const uint32_t* factor_rows;  // of each row from the first element's on: its place in `weights`, or kNoFactors; null:
                                // all have
  const uint16_t* residual;     // tokens from the first element's on; null: none
  const float* steps;           // from that of the first element on
  uint64_t first_elem;          // in the tensor
  uint32_t elems;
  uint32_t columns, first_column;      // with factors
  uint32_t group_elems, group_offset;  // elements that share a step, and those of the first step before the piece;
                                       // 0: one step for all
  uint32_t token_offset;               // levels of the first token before the piece
  uint32_t rank;
  uint32_t seed;
  const float* units;  // ResidualUnits of each level, by its byte: kWarpUnits
  bool is_wide;        // the residual's tokens hold two levels
  bool is_nearest;
  bool is_aligned;  // in runs: elems, columns, first_column, group_elems and the offsets, and memory
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
struct alignas(kRunElems * sizeof(T) < 16 ? kRunElems * sizeof(T) : 16) Run {
  T v[kRunElems];
};

struct Lane {
  uint32_t row, column;  // the row counted from the piece's first
  bool bad;
};

// The factors of a row; null: it has none.
MODELSTORE_DEVICE const float* WeightsOf(const WarpPiece& piece, uint32_t row) {
  if (piece.right == nullptr) return nullptr;
  const uint32_t place = piece.factor_rows == nullptr ? row : piece.factor_rows[row];
  return place == kNoFactors ? nullptr : piece.weights + static_cast<uint64_t>(place) * piece.rank;
}

// Levels of the residual's token that element `at` is in, or of the two that a quadruple from it on is in.
template <bool kQuad>
MODELSTORE_DEVICE uint32_t LevelsOf(const WarpTokens& tokens, const WarpPiece& piece, uint32_t at, bool* bad) {
  const uint16_t* const token = piece.residual + (piece.token_offset + at) / (piece.is_wide ? 2 : 4);
  *bad |= !IsToken(*token, piece.is_wide ? kPairTokens : kQuadTokens);
  if (!piece.is_wide) return tokens.quads[*token];
  uint32_t levels = tokens.pairs[*token];
  if constexpr (kQuad) {
    *bad |= !IsToken(token[1], kPairTokens);
    levels |= static_cast<uint32_t>(tokens.pairs[token[1]]) << 16;
  }
  return levels;
}

MODELSTORE_DEVICE float StepOf(const WarpPiece& piece, uint32_t at) {
  return piece.steps[piece.group_elems == 0 ? 0 : (piece.group_offset + at) / piece.group_elems];
}

// What a token's level adds: units times a step, a product that is exact.
MODELSTORE_DEVICE float AddLevel(const WarpPiece& piece, uint32_t levels, uint32_t index, float step, float sum) {
  return MulAdd(piece.units[levels >> (8 * index) & 0xff], step, sum);
}

template <DType kDType, typename U>
MODELSTORE_DEVICE void RoundRun(const Run<float>& sums, const Run<uint32_t>& dithers, Run<U>* patterns) {
  if constexpr (kDType == DType::kBF16) {
    // Where all that is predicted and rounded is finite, as always but in odd models, there is less to do.
    uint32_t predicted = 0, largest = 0;
    Run<U> rounded;
    for (unsigned t = 0; t < kRunElems; ++t) {
      const uint32_t wide = static_cast<uint32_t>(patterns->v[t]) << 16;
      const uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(wide) + sums.v[t]);
      const uint32_t magnitude = (bits & 0x7fffffff) + dithers.v[t];
      predicted = (wide & 0x7fffffff) > predicted ? (wide & 0x7fffffff) : predicted;
      largest = magnitude > largest ? magnitude : largest;
      rounded.v[t] = static_cast<U>(((bits & 0x80000000) | (magnitude & 0x7fffffff)) >> 16);
    }
    if (predicted < 0x7f800000 && largest < 0x7f800000) {
      *patterns = rounded;
      return;
    }
  }
  for (unsigned t = 0; t < kRunElems; ++t)
    patterns->v[t] = RoundElement<kDType, U>(patterns->v[t], sums.v[t], dithers.v[t]);
}

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

namespace warp_compact {

template <typename Warp, DType kDType, typename U, bool kAligned>
MODELSTORE_DEVICE bool RebuildRun(const WarpTokens& tokens, const WarpPiece& piece, uint32_t begin, uint32_t end) {
  constexpr uint32_t kChunk = kRunElems * kLanes;
  const U* const prediction = static_cast<const U*>(piece.prediction);
  U* const out = static_cast<U*>(piece.out);
  typename Warp::template Lanes<Lane> lanes;
  const uint32_t low = static_cast<uint32_t>(piece.first_elem);
  const uint32_t key = DitherKey(piece.first_elem + begin, piece.seed);
  const auto dither = [&](uint32_t at) {
    uint32_t of = key;
    if constexpr (!kAligned) of = DitherKey(piece.first_elem + at, piece.seed);  // the upper half may change
    const uint32_t h = DitherOf(low + at, of);
    return piece.is_nearest ? kHalf : h;
  };

  Warp::Each(lanes, [&](unsigned lane, Lane& l) {
    l.row = 0;
    l.column = 0;
    l.bad = false;
    if (piece.right == nullptr) return;
    const uint32_t at = piece.first_column + begin + kRunElems * lane;
    l.row = at / piece.columns;
    l.column = at % piece.columns;
  });
  for (uint32_t chunk = begin; chunk < end; chunk += kChunk) {
    Warp::Each(lanes, [&](unsigned lane, Lane& l) {
      const uint32_t first = chunk + kRunElems * lane;
      if (first >= end) return;
      if constexpr (kAligned) {
        Run<float> sums = {};
        if (const float* weights = WeightsOf(piece, l.row); weights != nullptr) {
          const float* right = piece.right + l.column;
          for (uint32_t k = 0; k < piece.rank; ++k, right += piece.columns) {
            const Run<float> v = *reinterpret_cast<const Run<float>*>(right);
            const float w = weights[k];
            for (unsigned t = 0; t < kRunElems; ++t) sums.v[t] = MulAdd(w, v.v[t], sums.v[t]);
          }
        }
        if (piece.residual != nullptr) {
          const float step = StepOf(piece, first);
          for (unsigned from = 0; from < kRunElems; from += 4) {
            const uint32_t levels = LevelsOf<true>(tokens, piece, first + from, &l.bad);
            if (levels == 0) continue;
            for (unsigned t = 0; t < 4; ++t) sums.v[from + t] = AddLevel(piece, levels, t, step, sums.v[from + t]);
          }
        }
        Run<uint32_t> dithers;
        for (unsigned t = 0; t < kRunElems; ++t) dithers.v[t] = dither(first + t);
        Run<U> patterns = *reinterpret_cast<const Run<U>*>(prediction + first);
        RoundRun<kDType, U>(sums, dithers, &patterns);
        *reinterpret_cast<Run<U>*>(out + first) = patterns;
      } else {
        uint32_t row = l.row, column = l.column;
        for (uint32_t at = first; at < first + kRunElems && at < end; ++at) {
          float sum = 0;
          if (const float* weights = WeightsOf(piece, row); weights != nullptr) {
            for (uint32_t k = 0; k < piece.rank; ++k)
              sum = MulAdd(weights[k], piece.right[k * piece.columns + column], sum);
          }
          if (piece.residual != nullptr) {
            const uint32_t levels = LevelsOf<false>(tokens, piece, at, &l.bad);
            const uint32_t of_token = (piece.token_offset + at) % (piece.is_wide ? 2 : 4);
            sum = AddLevel(piece, levels, of_token, StepOf(piece, at), sum);
          }
          out[at] = RoundElement<kDType, U>(prediction[at], sum, dither(at));
          if (++column == piece.columns) {
            column = 0;
            ++row;
          }
        }
      }
      if (piece.right == nullptr) return;
      l.column += kChunk;
      if (l.column < piece.columns) return;
      if (piece.columns > kChunk) {
        l.column -= piece.columns;
        ++l.row;
      } else {
        l.row += l.column / piece.columns;
        l.column %= piece.columns;
      }
    });
  }
  return Warp::Ballot(lanes, [](const Lane& l) { return l.bad; }) == 0;
}

}  // namespace warp_compact

// Elements [begin, end) of the piece, begin being a multiple of kRunElems. False when a token stands for no levels;
// `out` then holds garbage. U: the unsigned integer of the dtype's width.
template <typename Warp, DType kDType, typename U>
MODELSTORE_DEVICE bool RebuildTile(const WarpTokens& tokens, const WarpPiece& piece, uint32_t begin, uint32_t end) {
  const bool has_one_key = (piece.first_elem + begin) >> 32 == (piece.first_elem + end - 1) >> 32;
  return piece.is_aligned && has_one_key ? warp_compact::RebuildRun<Warp, kDType, U, true>(tokens, piece, begin, end)
                                         : warp_compact::RebuildRun<Warp, kDType, U, false>(tokens, piece, begin, end);
}

}  // namespace modelstore
