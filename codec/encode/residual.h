// The residual of a compact tensor (layer: codec/encode, internal): what the low-rank part leaves, quantized column by
// column with error feedback (codec/kernels/residual_sweep.h).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/encode/compact_encoder.h"
#include "codec/encode/low_rank.h"

namespace modelstore {

// How levels become values, and when an element gets one.
struct ResidualCoder {
  bool wide = false;
  uint64_t group_elems = 0;  // that share a step; 0: all
  std::vector<float> steps;  // exact BF16 values, one a group
  std::array<uint8_t, 3> biases{};
  std::vector<float> values;  // of the magnitudes 0, 1, …: in steps
  // A dead zone takes the level of least error + price x bits, `price` being a share of what an error of one step costs
  // in the mean column and row.
  std::vector<float> bits;  // of each magnitude
  float price = 0;
  // Pruning instead (`prune`): the share of each column block that stays and, where there are no moments, the magnitude
  // from which on an element of each group stays.
  bool prune = false;
  float keep = 1;
  std::vector<float> thresholds;

  uint64_t GroupOf(uint64_t elem) const { return group_elems == 0 ? 0 : elem / group_elems; }
  int max_level() const { return static_cast<int>(values.size()) - 1; }
};

// Some rows of a tensor, each standing for `counts` rows like it.
struct RowSample {
  std::vector<uint64_t> rows;
  std::vector<double> counts;
};
// All rows when there are at most `wanted`; else the `heaviest` ones, of most energy, which may be most of the
// tensor's, and one from each stratum of rows of similar energy. Precondition: wanted > 0.
RowSample SampleRows(const CompactInput& input, uint64_t wanted, uint64_t heaviest);

// What quantizing rows leads to; sums are over rows times their counts.
struct ResidualOutcome {
  double error = 0;                // tr(W E H E^T), E = aim x delta - what is stored
  double cross = 0, energy = 0;    // tr(W E H D^T) and tr(W D H D^T), D the delta: when asked for
  std::vector<double> magnitudes;  // histogram
  // By min(magnitude, 3), weighted: magnitude - target in steps, and the weights; without feedback and rounding.
  std::array<double, 3> shortfall{}, shortfall_weight{};
  double bits() const;  // entropy of the levels
  // tr(W E H E^T) of E = delta - what is stored.
  double ErrorFor(float aim) const {
    const double excess = static_cast<double>(aim) - 1;
    return error - 2 * excess * cross + excess * excess * energy;
  }
};

// The coder of a dead zone with steps of `step`, fitted to the rows of `sample`.
ResidualCoder FitDeadZone(const CompactInput& input, const LowRankFit& low_rank, float step, const RowSample& sample);
// The coder of literal GPT-Zip.
ResidualCoder FitPruning(const CompactInput& input, const CompactChoice& choice);

// Quantizes what `low_rank` leaves of aim x delta in the rows of `sample`. `levels`, when not null: of all rows in
// order (`sample` must then be all of them). `with_cross`: whether to compute that, too.
ResidualOutcome QuantizeResidual(const CompactInput& input, const LowRankFit& low_rank, const ResidualCoder& coder,
                                 const RowSample& sample, float aim, bool with_cross, std::vector<int8_t>* levels);
// tr(W E H E^T) over the rows of `sample` times their counts, E = delta - low rank.
double EnergyLeft(const CompactInput& input, const LowRankFit& low_rank, const RowSample& sample);

}  // namespace modelstore
