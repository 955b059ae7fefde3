// CompactFrame: how the tensors of a compact finetune are rebuilt from their base (layer: codec/decode).
// docs/format.md, "Compact tensors".
//
// A compact tensor is the concatenation of a model's tensors of one dtype ("segments"). It has no blocks of its own: a
// block of it is rebuilt from the same elements of its base and from three other stored tensors: `factors` and
// `residual` (U16 tokens, see codec/kernels/level_tokens.h) and `scales` (BF16). Element (i, j) of a segment of rows x
// columns becomes
//     base + sum over k of (scale_k * u_ik) * v_kj + residual_ij
// in float32, in that order, rounded to the dtype, to nearest or with a dither that depends on the frame's seed and the
// element's index. The low-rank part after GPT-Zip's successors (Delta-CoMe: SVD of the delta), the residual after
// GPT-Zip (prune and quantize in one step: a dead zone). Immutable after parsing; safe to share between threads.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

// Limits of what a frame may ask for.
inline constexpr uint32_t kMaxCompactRank = 1024;
inline constexpr uint64_t kMaxRightFactorLevels = 1 << 24;  // rank * columns of a segment
inline constexpr uint64_t kMaxCompactSegments = 1 << 20;
inline constexpr unsigned kFactorTokenLevels = 2;    // levels in a token of factors, each in [-127, 127]
inline constexpr unsigned kResidualTokenLevels = 4;  // … of a residual, each in [-7, 7]
inline constexpr float kBiasUnit = 1.0f / 64;

struct CompactSegment {
  uint64_t rows = 0, columns = 0;  // both at least 1
  uint32_t rank = 0;
  bool has_residual = false;
  bool wide_residual = false;       // its tokens hold kFactorTokenLevels levels (more than 3 bits)
  bool nearest = false;             // rounded to nearest (halves away from 0) instead of by the dither
  uint64_t group_elems = 0;         // of the residual: elements of the segment that share a step; 0: all
  std::array<uint8_t, 3> biases{};  // level q != 0 stands for sign(q) (|q| - biases[min(|q|, 3) - 1] / 64) steps
  std::vector<uint64_t> row_mask;   // bit i: row i has factors; empty: all have
  uint8_t drift_code = 0;           // of this tensor: see DriftFromCode

  // Derived by FinishLayout: where its parts begin.
  uint64_t first_elem = 0;            // in the compact tensor
  uint64_t first_factor_token = 0;    // v: rank x columns levels, then u: (rows with factors) x rank levels; both from
  uint64_t first_left_token = 0;      // a token's beginning
  uint64_t first_residual_token = 0;  // rows * columns levels
  uint64_t first_scale = 0;           // rank of them, then the residual's steps
  std::vector<uint64_t> rows_before;  // of each word of row_mask: rows with factors before it

  uint64_t elems() const { return rows * columns; }
  uint64_t factor_rows() const;  // rows with factors
  bool has_factors(uint64_t row) const { return row_mask.empty() || (row_mask[row / 64] >> (row % 64) & 1) != 0; }
  uint64_t step_elems() const { return group_elems == 0 ? elems() : group_elems; }  // that share a step
  uint64_t groups() const;  // steps of the residual; 0 without one
  unsigned residual_token_levels() const { return wide_residual ? kFactorTokenLevels : kResidualTokenLevels; }
};

struct CompactFrame {
  uint32_t seed = 0;
  std::vector<CompactSegment> segments;
  // Derived: lengths of the three tensors.
  uint64_t factor_tokens = 0, residual_tokens = 0, scales = 0;

  // Sets all that is derived. Errors: Corruption when sizes overflow, contradict `elems` or each other, or exceed the
  // limits.
  Status FinishLayout(uint64_t elems);
};

// Drift of a tensor as one byte: 0 means 0; code c means 2^((c - 224) / 8), from 2^-27.9 to 2^3.9. Rounded up: what is
// shown is never less than what was measured.
uint8_t DriftCode(double drift);
double DriftFromCode(uint8_t code);

// The part of a frame after its block size. Errors: Corruption, Unsupported.
void SerializeCompact(const CompactFrame& frame, ByteWriter& out);
Result<CompactFrame> ParseCompact(ByteReader& in, uint64_t elems);

}  // namespace modelstore
