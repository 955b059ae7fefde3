#include "codec/encode/compact_encoder.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <string>

#include "codec/encode/delta_math.h"
#include "codec/encode/input_moments.h"
#include "codec/encode/low_rank.h"
#include "codec/encode/residual.h"
#include "codec/kernels/residual_sweep.h"

namespace modelstore {
namespace {

// Larger differences would overflow float32 in products with the moments.
constexpr float kLargestDelta = 1e30f;
// Rows that an estimate of a residual looks at: at least so many, else a share of them.
constexpr uint64_t kLeastSample = 48;
constexpr uint64_t kSampleShare = 48;
constexpr uint64_t kFitRows = 96;  // of the sample that a dead zone is fitted to
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

// tr(W E H E^T), E = delta - low rank - residual as stored, before rounding. Without both it is the delta's energy.
double Measure(const CompactInput& input, const LowRankFit* low_rank, const ResidualCoder* coder,
               std::span<const int8_t> levels) {
  std::optional<LowRankRows> lower;
  if (low_rank != nullptr) lower.emplace(*low_rank, input.columns);
  std::vector<double> errors(PanelCount(input.rows, input.columns));
  ForEachPanel(input, input.rows, [&](size_t p, uint64_t first, uint64_t count) {
    const uint64_t begin = first * input.columns;
    const auto values = input.delta.subspan(begin, count * input.columns);
    std::vector<float> panel(values.begin(), values.end()), scratch;
    if (lower) {
      std::vector<uint64_t> rows(count);
      std::iota(rows.begin(), rows.end(), first);
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
    std::vector<double> energies(count);
    RowEnergies(input.moments, panel.data(), count, input.columns, scratch, energies.data());
    for (uint64_t i = 0; i < count; ++i) errors[p] += WeightOf(input, first + i) * energies[i];
  });
  return std::accumulate(errors.begin(), errors.end(), 0.0);
}

double Energy(const CompactInput& input) { return Measure(input, nullptr, nullptr, {}); }

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
// moves less, and these errors add up. What is missing was counted with the moments that the fit was made for; on other
// inputs more is, above all of a residual under feedback. Measured on two finetunes, at ratios from 20 to 2,000: each
// factor lowers the divergence from the finetune at all of them, and so would a little more; a tensor of which nearly
// all is missing is better left short. So is the low rank of weighted rows (embeddings).
float ScaleFor(const CompactInput& input, const CompactChoice& choice, bool residual, double along) {
  constexpr double kMostScale = 1.75, kMissedByLowRank = 1.15, kMissedByResidual = 1.3, kMissedByFeedback = 2.5;
  if (choice.scale > 0) return choice.scale;
  const bool weighted = !input.row_weights.empty();
  if (choice.bits > 0 || (weighted && !residual)) return 1;
  const bool feedback = residual && !weighted && input.moments != nullptr;
  const double missing = (1 - along) * (feedback ? kMissedByFeedback : residual ? kMissedByResidual : kMissedByLowRank);
  return static_cast<float>(std::clamp(1 / std::max(1 - missing, 1e-3), 1.0, kMostScale));
}

double ScaledError(double error, double energy, float scale) {
  const double excess = static_cast<double>(scale) - 1;
  return error + excess * excess * std::max(0.0, energy - error);
}

// What a residual of `coder` would cost and leave, by a sample of rows of which `untouched` is left without it.
void AddResidual(const CompactInput& input, const LowRankFit& low_rank, const ResidualCoder& coder,
                 const RowSample& sample, double untouched, double scale_bytes, CompactEstimate& estimate) {
  const ResidualOutcome outcome = QuantizeResidual(input, low_rank, coder, sample, 1, false, nullptr);
  estimate.bytes += outcome.bits() / 8 + scale_bytes;
  if (untouched > 0) estimate.error *= outcome.error / untouched;
}

// The factor on a delta whose residual is rounded with it: what is quantized is longer by what a sample loses.
float AimFor(const CompactInput& input, const CompactChoice& choice, const LowRankFit& low_rank,
             const ResidualCoder& coder) {
  constexpr uint64_t kRows = 192;
  constexpr float kLeastGain = 1.002f;
  const ResidualOutcome outcome =
      QuantizeResidual(input, low_rank, coder, SampleRows(input, kRows, kRows / 4), 1, true, nullptr);
  const float aim = outcome.energy > 0 ? ScaleFor(input, choice, true, 1 - outcome.cross / outcome.energy) : 1;
  return aim > kLeastGain ? aim : 1;
}

}  // namespace

uint64_t CompactMemoryBytes(uint64_t rows, uint64_t columns, bool has_moments, const CompactChoice& largest) {
  const uint64_t elems = rows * columns, panel_rows = std::min(rows, PanelRows(columns)) + kSweepRows;
  const uint64_t panels = std::min(kPanelsAtOnce, PanelCount(rows, columns));
  uint64_t bytes = panels * panel_rows * (columns * 5 + 512) * sizeof(float) + rows * 64 + columns * 32;
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
  analysis.energy = input.energy ? *input.energy : Energy(input);
  analysis.estimates.push_back({CompactChoice{}, 0, analysis.energy});
  std::map<float, LowRankBasis> bases;  // by their steps
  const uint64_t wanted = std::max(kLeastSample, input.rows / kSampleShare);
  const RowSample sample = SampleRows(input, wanted, wanted / 4);
  // Pruning keeps a share of the rows that it sees: no kind of them may be more frequent than in the tensor.
  const RowSample even = SampleRows(input, wanted, 0);
  const float sigma = Sigma(input.delta);
  std::optional<LowRankFit> fit;
  CompactChoice fitted;
  std::optional<double> left;  // by `fit`, of the sample
  std::map<float, ResidualCoder> coders;
  for (const CompactChoice& choice : ladder) {
    CompactEstimate estimate{choice, 0, analysis.energy};
    if (analysis.energy > 0 && choice.bits > 0) {
      const ResidualCoder coder = FitPruning(input, choice);
      AddResidual(input, LowRankFit{}, coder, even, EnergyLeft(input, LowRankFit{}, even),
                  2 * static_cast<double>(coder.steps.size()), estimate);
    } else if (analysis.energy > 0) {
      if (!fit || fitted.rank != choice.rank || fitted.factor_step != choice.factor_step) {
        const auto [basis, is_new] =
            bases.try_emplace(choice.factor_step, input, RankFor(input, rank), choice.factor_step, analysis.energy);
        fit = basis->second.Fit(input, choice.rank);
        fitted = choice;
        left.reset();
      }
      estimate.bytes = fit->bytes;
      estimate.error = fit->error;
      if (choice.residual_step > 0) {
        // Costs and biases of a step change little with the rank: they are fitted once.
        const auto [coder, is_new] = coders.try_emplace(choice.residual_step);
        if (is_new) coder->second = FitDeadZone(input, *fit, choice.residual_step * sigma, sample);
        if (!left) left = EnergyLeft(input, *fit, sample);
        AddResidual(input, *fit, coder->second, sample, *left, 2, estimate);
      }
      const float scale = ScaleFor(input, choice, choice.residual_step > 0, 1 - estimate.error / analysis.energy);
      estimate.error = ScaledError(estimate.error, analysis.energy, scale);
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
  tensor.energy = input.energy ? *input.energy : Energy(input);
  if (!(tensor.energy > 0)) return tensor;

  LowRankFit low_rank;
  low_rank.error = tensor.energy;
  std::optional<ResidualCoder> coder;
  if (choice.bits > 0) {
    coder = FitPruning(input, choice);
  } else {
    if (const uint32_t rank = RankFor(input, choice.rank); rank > 0) {
      low_rank = LowRankBasis(input, rank, choice.factor_step, tensor.energy).Fit(input, rank);
    }
    if (choice.residual_step > 0) {
      const RowSample sample = SampleRows(input, kFitRows, kFitRows / 4);
      coder = FitDeadZone(input, low_rank, choice.residual_step * Sigma(input.delta), sample);
    }
  }
  // Least squares keep as much as they leave out of the energy; of a residual with error feedback it is measured.
  double along = 1 - low_rank.error / tensor.energy;
  std::optional<double> error;  // while nothing changed since it was measured
  bool rounded = coder && !coder->prune && !input.base.empty();
  if (coder) {
    // Rounded values cannot be scaled afterwards: the levels are chosen for a longer delta, of which as much gets lost.
    const float aim = rounded && choice.scale == 0 ? AimFor(input, choice, low_rank, *coder) : 1;
    const bool needs_cross = aim != 1 || (!rounded && !coder->prune && choice.scale == 0);
    const ResidualOutcome outcome =
        QuantizeResidual(input, low_rank, *coder, SampleRows(input, input.rows, 0), aim, needs_cross, &tensor.residual);
    if (std::all_of(tensor.residual.begin(), tensor.residual.end(), [](int8_t q) { return q == 0; })) {
      tensor.residual.clear();
      coder.reset();
      rounded = false;
    } else {
      along = 1 - outcome.cross / tensor.energy;
      error = outcome.ErrorFor(aim);
    }
  }
  if (const float scale = rounded ? 1 : ScaleFor(input, choice, coder.has_value(), along); scale != 1) {
    low_rank.ScaleBy(scale);
    if (coder) {
      for (float& s : coder->steps) s = FromBf16(ToBf16(s * scale));
    }
    error.reset();
  }
  // What least squares say of the error is a difference of numbers of the energy's size.
  constexpr double kLeastDifference = 1e-3;
  if (!coder && low_rank.error > kLeastDifference * tensor.energy) error = low_rank.error;
  if (!error) error = Measure(input, &low_rank, coder ? &*coder : nullptr, tensor.residual);
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
