#include "codec/encode/compact_encoder.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>

#include "codec/encode/delta_math.h"
#include "codec/encode/input_moments.h"
#include "codec/encode/low_rank.h"
#include "codec/encode/residual.h"

namespace modelstore {
namespace {

// Larger differences would overflow float32 in products with the moments.
constexpr float kLargestDelta = 1e30f;
// Rows that an estimate of a residual looks at: at least so many, else a share of them.
constexpr uint64_t kLeastSample = 48;
constexpr uint64_t kSampleShare = 48;
constexpr uint32_t kMaxPruneBits = 8;

Status Check(const CompactInput& input) {
  const std::string shape = std::to_string(input.rows) + " x " + std::to_string(input.columns);
  if (input.rows == 0 || input.columns == 0 || input.delta.size() / input.rows != input.columns ||
      input.delta.size() % input.rows != 0) {
    return InvalidArgument("a delta of " + std::to_string(input.delta.size()) + " elements is not of shape " + shape);
  }
  if (!input.base.empty() && input.base.size() != input.delta.size()) {
    return InvalidArgument("a base of " + std::to_string(input.base.size()) + " elements does not fit a delta of " +
                           std::to_string(input.delta.size()));
  }
  if (input.moments != nullptr && input.moments->state().n != input.columns) {
    return InvalidArgument("moments of " + std::to_string(input.moments->state().n) +
                           " inputs do not fit a tensor of " + shape);
  }
  if (!input.row_weights.empty() && input.row_weights.size() != input.rows) {
    return InvalidArgument(std::to_string(input.row_weights.size()) + " row weights do not fit a tensor of " + shape);
  }
  for (const float w : input.row_weights) {
    if (!std::isfinite(w) || w < 0) return InvalidArgument("row weights must be finite and not negative");
  }
  for (const float d : input.delta) {
    if (!(std::abs(d) <= kLargestDelta)) {
      return InvalidArgument("the delta has values that are not finite, or larger than 1e30");
    }
  }
  return OkStatus();
}

Status Check(const CompactChoice& choice) {
  const auto positive = [](float x) { return std::isfinite(x) && x >= 0; };
  if (choice.bits > kMaxPruneBits || !positive(choice.sparsity) || choice.sparsity > 1) {
    return InvalidArgument("pruning to " + std::to_string(choice.bits) + " bits at a sparsity of " +
                           std::to_string(choice.sparsity) + ": expected 1 to 8 bits and a share of 0 to 1");
  }
  if (choice.rank > kMaxCompactRank || !positive(choice.factor_step) || choice.factor_step == 0 ||
      !positive(choice.residual_step) || !positive(choice.scale)) {
    return InvalidArgument("a rank above " + std::to_string(kMaxCompactRank) + ", a step or a scale out of range");
  }
  return OkStatus();
}

double WeightOf(const CompactInput& input, uint64_t row) {
  return input.row_weights.empty() ? 1 : static_cast<double>(input.row_weights[row]);
}

struct Measured {
  double error = 0;  // tr(W E H E^T), E = delta - low rank - residual as stored
  double kept = 0;   // the same of delta - E: when asked for
};

// Without low rank and levels the error is the delta's energy.
// `rounded`: after rounding to nearest.
Measured Measure(const CompactInput& input, const LowRankFit* low_rank, const ResidualCoder* coder,
                 std::span<const int8_t> levels, bool kept, bool rounded = false) {
  std::optional<LowRankRows> lower;
  if (low_rank != nullptr) lower.emplace(*low_rank, input.columns);
  std::vector<float> panel, scratch;
  std::vector<uint64_t> rows;
  std::vector<double> energies(kPanelRows);
  Measured measured;
  for (uint64_t first = 0; first < input.rows; first += kPanelRows) {
    const uint64_t count = std::min(kPanelRows, input.rows - first), begin = first * input.columns;
    const auto values = input.delta.subspan(begin, count * input.columns);
    panel.assign(values.begin(), values.end());
    if (lower) {
      rows.resize(count);
      for (uint64_t i = 0; i < count; ++i) rows[i] = first + i;
      lower->Subtract(rows, panel.data());
    }
    if (!levels.empty()) {
      for (uint64_t e = 0; e < panel.size(); ++e) {
        const int q = levels[begin + e];
        if (q == 0) continue;
        const float value = coder->values[static_cast<size_t>(std::abs(q))] * coder->steps[coder->GroupOf(begin + e)];
        panel[e] -= q < 0 ? -value : value;
      }
    }
    if (rounded) {
      for (uint64_t e = 0; e < panel.size(); ++e) {
        const float finetune = FromBf16(input.base[begin + e]) + values[e];
        panel[e] = finetune - RoundToBf16(finetune - panel[e]);
      }
    }
    const auto sum = [&] {
      RowEnergies(input.moments, panel.data(), count, input.columns, scratch, energies.data());
      double energy = 0;
      for (uint64_t i = 0; i < count; ++i) energy += WeightOf(input, first + i) * energies[i];
      return energy;
    };
    measured.error += sum();
    if (!kept) continue;
    for (uint64_t e = 0; e < panel.size(); ++e) panel[e] = values[e] - panel[e];
    measured.kept += sum();
  }
  return measured;
}

double Energy(const CompactInput& input) { return Measure(input, nullptr, nullptr, {}, false).error; }

float Sigma(std::span<const float> delta) {
  double sum = 0;
  for (const float d : delta) sum += static_cast<double>(d) * d;
  return static_cast<float>(std::sqrt(sum / static_cast<double>(delta.size())));
}

uint32_t RankFor(const CompactInput& input, uint32_t wanted) {
  return static_cast<uint32_t>(
      std::min<uint64_t>({wanted, input.rows, input.columns, kMaxRightFactorLevels / input.columns}));
}

// The factor on the whole delta. `along`: tr(kept H D^T) / tr(D H D^T), the part of the finetune's direction that is
// kept. A delta that is too short in that direction costs more than one with some noise: in every layer the output
// moves less, and these errors add up. A residual under feedback was fitted to the moments: on other inputs it misses
// about twice as much. The low rank of weighted rows (embeddings) is better left alone.
float ScaleFor(const CompactInput& input, const CompactChoice& choice, double along) {
  constexpr double kMostScale = 1.5;
  if (choice.scale > 0) return choice.scale;
  const bool weighted = !input.row_weights.empty(), residual = choice.residual_step > 0;
  if (choice.bits > 0 || (weighted && !residual)) return 1;
  const double missing = (1 - along) * (residual && !weighted && input.moments != nullptr ? 2 : 1);
  return static_cast<float>(std::clamp(1 / std::max(1 - missing, 1e-3), 1.0, kMostScale));
}

double ScaledError(double error, double energy, float scale) {
  const double excess = static_cast<double>(scale) - 1;
  return error + excess * excess * std::max(0.0, energy - error);
}

// What a residual of `coder` would cost and leave, by a sample of rows.
void AddResidual(const CompactInput& input, const LowRankFit& low_rank, const ResidualCoder& coder,
                 const RowSample& sample, double scale_bytes, double& bytes, double& error) {
  const ResidualOutcome outcome = QuantizeResidual(input, low_rank, coder, sample, true, nullptr);
  bytes += outcome.bits() / 8 + scale_bytes;
  if (outcome.untouched > 0) error *= outcome.error / outcome.untouched;
}

}  // namespace

uint64_t CompactMemoryBytes(uint64_t rows, uint64_t columns, bool has_moments, const CompactChoice& largest) {
  const uint64_t elems = rows * columns;
  const uint64_t panel = std::min(rows, kPanelRows) * (columns * 3 + 256) * sizeof(float);
  uint64_t bytes = panel + rows * 64 + columns * 32;
  if (largest.rank > 0) {
    const auto rank = static_cast<uint32_t>(std::min<uint64_t>({largest.rank, rows, columns}));
    bytes += LowRankBasis::MemoryBytes(rows, columns, rank) + (rows + columns) * rank * 4;
  }
  if (largest.residual_step > 0 || largest.bits > 0) bytes += elems;
  if (largest.bits > 0) {
    const uint64_t group = largest.group_elems == 0 ? elems : largest.group_elems;
    bytes += std::min(group, elems) * sizeof(float) + elems / group * 8;
  }
  return bytes + (has_moments ? columns * 16 : 0);
}

Result<CompactAnalysis> AnalyzeTensor(const CompactInput& input, std::span<const CompactChoice> ladder) {
  RETURN_IF_ERROR(Check(input));
  uint32_t rank = 0;
  for (const CompactChoice& choice : ladder) {
    RETURN_IF_ERROR(Check(choice));
    if (choice.bits == 0) rank = std::max(rank, choice.rank);
  }
  CompactAnalysis analysis;
  analysis.energy = Energy(input);
  analysis.estimates.push_back({CompactChoice{}, 0, analysis.energy});
  const LowRankBasis basis(input, analysis.energy > 0 ? RankFor(input, rank) : 0, analysis.energy);
  const uint64_t wanted = std::max(kLeastSample, input.rows / kSampleShare);
  const RowSample sample = SampleRows(input, wanted, wanted / 4);
  // Pruning keeps a share of the rows that it sees: no kind of them may be more frequent than in the tensor.
  const RowSample even = SampleRows(input, wanted, 0);
  const float sigma = Sigma(input.delta);
  std::optional<LowRankFit> fit;
  CompactChoice fitted;
  std::map<float, ResidualCoder> coders;
  for (const CompactChoice& choice : ladder) {
    CompactEstimate estimate{choice, 0, analysis.energy};
    if (analysis.energy > 0 && choice.bits > 0) {
      const ResidualCoder coder = FitPruning(input, choice);
      AddResidual(input, LowRankFit{}, coder, even, 2 * static_cast<double>(coder.steps.size()), estimate.bytes,
                  estimate.error);
    } else if (analysis.energy > 0) {
      if (!fit || fitted.rank != choice.rank || fitted.factor_step != choice.factor_step) {
        fit = basis.Fit(input, choice.rank, choice.factor_step);
        fitted = choice;
      }
      estimate.bytes = fit->bytes;
      estimate.error = fit->error;
      if (choice.residual_step > 0) {
        // Costs and biases of a step change little with the rank: they are fitted once.
        const auto [coder, is_new] = coders.try_emplace(choice.residual_step);
        if (is_new) coder->second = FitDeadZone(input, *fit, choice.residual_step * sigma);
        AddResidual(input, *fit, coder->second, sample, 2, estimate.bytes, estimate.error);
      }
      estimate.error =
          ScaledError(estimate.error, analysis.energy, ScaleFor(input, choice, 1 - estimate.error / analysis.energy));
    }
    analysis.estimates.push_back(estimate);
  }
  return analysis;
}

Result<CompactTensor> EncodeTensor(const CompactInput& given, const CompactChoice& choice) {
  CompactInput input = given;
  // Levels that were chosen with the rounding in mind fit their own steps only, not steps times another scale.
  if (choice.scale != 0 && choice.scale != 1) input.base = {};
  RETURN_IF_ERROR(Check(input));
  RETURN_IF_ERROR(Check(choice));
  CompactTensor tensor;
  tensor.segment.rows = input.rows;
  tensor.segment.columns = input.columns;
  tensor.energy = tensor.error = Energy(input);
  if (!(tensor.energy > 0)) return tensor;

  LowRankFit low_rank;
  low_rank.error = tensor.energy;
  std::optional<ResidualCoder> coder;
  if (choice.bits > 0) {
    coder = FitPruning(input, choice);
  } else {
    if (const uint32_t rank = RankFor(input, choice.rank); rank > 0) {
      low_rank = LowRankBasis(input, rank, tensor.energy).Fit(input, rank, choice.factor_step);
    }
    if (choice.residual_step > 0) coder = FitDeadZone(input, low_rank, choice.residual_step * Sigma(input.delta));
  }
  if (coder) {
    QuantizeResidual(input, low_rank, *coder, SampleRows(input, input.rows, 0), false, &tensor.residual);
    if (std::all_of(tensor.residual.begin(), tensor.residual.end(), [](int8_t q) { return q == 0; })) {
      tensor.residual.clear();
      coder.reset();
    }
  }
  // Least squares keep as much as they leave out of the energy; a residual with error feedback is measured.
  double along = 1 - low_rank.error / tensor.energy;
  const bool rounded = coder && !coder->prune && !input.base.empty();
  std::optional<double> error;  // while nothing changed since it was measured
  if (coder && choice.scale == 0) {
    const Measured measured = Measure(input, &low_rank, &*coder, tensor.residual, true, rounded);
    along = (tensor.energy + measured.kept - measured.error) / (2 * tensor.energy);
    error = measured.error;
  }
  if (rounded) {
    // Rounded values cannot be scaled: the levels are chosen anew for a longer delta, of which as much gets lost.
    constexpr float kLeastGain = 1.002f;
    if (const float aim = ScaleFor(input, choice, along); aim > kLeastGain) {
      QuantizeResidual(input, low_rank, *coder, SampleRows(input, input.rows, 0), false, &tensor.residual, aim);
      error.reset();
    }
  }
  if (const float scale = rounded ? 1 : ScaleFor(input, choice, along); scale != 1) {
    for (float& s : low_rank.scales) s = FromBf16(ToBf16(s * scale));
    if (coder) {
      for (float& s : coder->steps) s = FromBf16(ToBf16(s * scale));
    }
    error.reset();
  }
  if (!error) error = Measure(input, &low_rank, coder ? &*coder : nullptr, tensor.residual, false, rounded).error;
  tensor.error = *error;
  if (!std::isfinite(tensor.error)) return InvalidArgument("the delta is too large for its moments");

  tensor.segment.rank = low_rank.rank;
  tensor.segment.row_mask = std::move(low_rank.row_mask);
  tensor.right = std::move(low_rank.right);
  tensor.left = std::move(low_rank.left);
  for (const float s : low_rank.scales) tensor.scales.push_back(ToBf16(s));
  if (coder) {
    tensor.segment.has_residual = true;
    tensor.segment.nearest = rounded;
    tensor.segment.wide_residual = coder->wide;
    tensor.segment.group_elems = coder->group_elems;
    tensor.segment.biases = coder->biases;
    for (const float s : coder->steps) tensor.scales.push_back(ToBf16(s));
  }
  tensor.bytes =
      low_rank.bytes + LevelBits(tensor.residual) / 8 + 2 * (coder ? static_cast<double>(coder->steps.size()) : 0);
  tensor.segment.drift_code = DriftCode(tensor.error / tensor.energy);
  return tensor;
}

}  // namespace modelstore
