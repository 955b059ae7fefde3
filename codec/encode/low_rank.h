// The low-rank part of a compact tensor (layer: codec/encode, internal): singular vectors of W^1/2 D R (H = R R^T, W
// the rows' weights) by randomized subspace iteration, quantized, with the left factor fitted to the quantized right
// one. Immutable after making.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/encode/compact_encoder.h"

namespace modelstore {

struct LowRankFit {
  uint32_t rank = 0;
  std::vector<int8_t> right, left;  // as CompactTensor
  std::vector<uint64_t> row_mask;   // as CompactSegment
  std::vector<float> scales;        // exact BF16 values
  double error = 0;                 // tr(W E H E^T)
  double bytes = 0;                 // entropy of the levels, scales and mask
  // The error is energy - 2 s . gain + s . normal s, s the scales; rank x rank and rank.
  std::vector<double> normal, gain;
  double energy = 0;

  // Multiplies the scales, which stay BF16 values, and sets the error.
  void ScaleBy(float factor);

 private:
  friend class LowRankBasis;
  void SetError();
};

// Rows of the low-rank part as numbers. Keeps a reference to the fit.
class LowRankRows {
 public:
  LowRankRows(const LowRankFit& fit, uint64_t columns);
  // panel (rows.size() x columns) -= these rows
  void Subtract(std::span<const uint64_t> rows, float* panel) const;

 private:
  const LowRankFit& fit_;
  uint64_t columns_;
  std::vector<float> right_;
  std::vector<uint64_t> rows_before_;  // of each word of the mask
};

// The leading right vectors of a delta, quantized.
class LowRankBasis {
 public:
  // At most `rank` of them (fewer when the delta has fewer), with steps of factor_step x rms. `energy`: tr(W D H D^T).
  LowRankBasis(const CompactInput& input, uint32_t rank, float factor_step, double energy);
  // With the first `rank` of them. `input` as given to the constructor.
  LowRankFit Fit(const CompactInput& input, uint32_t rank) const;

  static uint64_t MemoryBytes(uint64_t rows, uint64_t columns, uint32_t rank);

 private:
  void QuantizeRight(const CompactInput& input, std::vector<float> right);

  uint32_t rank_ = 0;
  float factor_step_;
  double energy_;
  std::vector<double> component_energy_;  // rank_ + 1: of each component, and of the first that is left out
  std::vector<int8_t> right_;             // V: levels, rank_ x columns
  std::vector<float> product_;            // D H V^T, rows x rank_
  std::vector<double> gram_;              // V H V^T
};

}  // namespace modelstore
