#include "codec/encode/residual.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "codec/encode/delta_math.h"
#include "codec/encode/input_moments.h"

namespace modelstore {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using StridedMap = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
using Index = Eigen::Index;

// Columns whose errors are fed back one by one; those before come by a product of matrices.
constexpr uint64_t kBlockColumns = 64;
constexpr uint64_t kFitRows = 96;  // of the sample that a dead zone is fitted to
constexpr int kFitRounds = 2;
// Entropy-constrained quantization: the error that a bit must save, as a share of step^2. At high rates d(step^2 / 12)
// / d(bits) is 2 ln 2 / 12 = 0.116; measured divergence is flat from 0.05 to 0.12 at equal bytes.
constexpr float kPrice = 0.08f;
constexpr float kDeadZoneRounding = 0.34f;  // of the first guess
// A row's error counts as that of this share of the mean row at least: tokens that the calibration text lacks occur.
constexpr double kLeastRowShare = 0.1;
// Steps of weighted rows are finer by this factor at the same price of a bit: rows of frequent tokens differ by less
// than a standard deviation of the whole, and weigh a hundred times the mean.
constexpr float kWeightedFineness = 4;

// Quantizes panels of rows; collects what comes out.
class Sweep {
 public:
  Sweep(const CompactInput& input, const ResidualCoder& coder)
      : coder_(coder), state_(input.moments != nullptr ? &input.moments->state() : nullptr), columns_(input.columns) {
    magnitudes_.assign(coder.values.size(), 0);
    column_cost_.assign(columns_, 1);
    inverse_.assign(columns_, 1);
    if (state_ != nullptr) {
      double mean = 0;
      for (const float w : state_->weights) mean += w;
      mean /= static_cast<double>(columns_);
      for (uint64_t j = 0; j < columns_; ++j) {
        column_cost_[j] = static_cast<float>(state_->weights[j] / mean);
        inverse_[j] = 1 / state_->root[j * columns_ + j];
      }
      unit_ = mean * state_->unit;
    }
    if (!input.row_weights.empty()) {
      row_weights_ = input.row_weights;
      for (const float w : row_weights_) mean_row_ += static_cast<double>(w);
      mean_row_ /= static_cast<double>(input.rows);
      if (!(mean_row_ > 0)) mean_row_ = 1;
    } else {
      mean_row_ = 1;
    }
  }

  // targets: rows x columns; become the errors. anchors: the sums that levels are added to, when these are rounded to
  // nearest, else null. levels: as many, or null.
  void Panel(const uint64_t* rows, const double* counts, uint64_t row_count, float* targets, const float* anchors,
             int8_t* levels) {
    moved_.resize(row_count * kBlockColumns);
    for (uint64_t first = 0; first < columns_; first += kBlockColumns) {
      const uint64_t width = std::min(kBlockColumns, columns_ - first);
      std::fill(moved_.begin(), moved_.end(), 0.0f);
      if (state_ != nullptr && first > 0) {
        Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(moved_.data(), static_cast<Index>(row_count),
                                                    static_cast<Index>(width), Eigen::OuterStride<>(kBlockColumns))
            .noalias() = StridedMap(targets, static_cast<Index>(row_count), static_cast<Index>(first),
                                    Eigen::OuterStride<>(static_cast<Index>(columns_))) *
                         StridedMap(state_->root.data() + first, static_cast<Index>(first), static_cast<Index>(width),
                                    Eigen::OuterStride<>(static_cast<Index>(columns_)));
      }
      if (coder_.prune) MarkPruned(rows, row_count, targets, first, width);
      for (uint64_t i = 0; i < row_count; ++i) {
        Row(rows[i], i, counts[i], targets + i * columns_, anchors != nullptr ? anchors + i * columns_ : nullptr, first,
            width, levels != nullptr ? levels + i * columns_ : nullptr);
      }
    }
  }

  ResidualOutcome Outcome() const {
    ResidualOutcome out;
    out.error = error_ * unit_ * mean_row_;
    out.magnitudes = magnitudes_;
    for (size_t b = 0; b < 3; ++b)
      out.shortfall[b] = shortfall_weight_[b] > 0 ? shortfall_[b] / shortfall_weight_[b] : 0;
    return out;
  }

 private:
  // Which elements of a block stay: those whose loss would cost most.
  void MarkPruned(const uint64_t* rows, uint64_t row_count, const float* targets, uint64_t first, uint64_t width) {
    kept_.assign(row_count * kBlockColumns, 0);
    if (state_ == nullptr) {
      for (uint64_t i = 0; i < row_count; ++i) {
        for (uint64_t c = 0; c < width; ++c) {
          const float threshold = coder_.thresholds[coder_.GroupOf(rows[i] * columns_ + first + c)];
          kept_[i * kBlockColumns + c] = std::abs(targets[i * columns_ + first + c]) >= threshold;
        }
      }
      return;
    }
    saliency_.clear();
    for (uint64_t i = 0; i < row_count; ++i) {
      for (uint64_t c = 0; c < width; ++c) saliency_.push_back(Saliency(targets, i, first, c));
    }
    const auto dropped = static_cast<size_t>(std::lround((1.0 - coder_.keep) * static_cast<double>(saliency_.size())));
    if (dropped >= saliency_.size()) return;
    std::nth_element(saliency_.begin(), saliency_.begin() + static_cast<ptrdiff_t>(dropped), saliency_.end());
    const float threshold = saliency_[dropped];
    for (uint64_t i = 0; i < row_count; ++i) {
      for (uint64_t c = 0; c < width; ++c) kept_[i * kBlockColumns + c] = Saliency(targets, i, first, c) >= threshold;
    }
  }
  float Saliency(const float* targets, uint64_t i, uint64_t first, uint64_t c) const {
    const uint64_t j = first + c;
    const float t = targets[i * columns_ + j] + moved_[i * kBlockColumns + c] * inverse_[j];
    return t * t * column_cost_[j];
  }

  void Row(uint64_t row, uint64_t i, double count, float* target, const float* anchors, uint64_t first, uint64_t width,
           int8_t* levels) {
    const double weight = row_weights_.empty() ? 1.0 : static_cast<double>(row_weights_[row]) / mean_row_;
    float* moved = moved_.data() + i * kBlockColumns;
    const auto cost = static_cast<float>(row_weights_.empty() ? 1 : (weight + kLeastRowShare) / (1 + kLeastRowShare));
    double row_error = 0;
    for (uint64_t c = 0; c < width; ++c) {
      const uint64_t j = first + c;
      const float step = coder_.steps[coder_.GroupOf(row * columns_ + j)];
      const float t = target[j] + moved[c] * inverse_[j];
      const float x = step > 0 ? std::abs(t) / step : 0;
      int q;
      float value;
      if (anchors != nullptr && step > 0) {
        value = CheapestRounded(t, anchors[j], step, column_cost_[j] * cost, &q);
      } else {
        q = coder_.prune ? (kept_[i * kBlockColumns + c] && step > 0 ? Nearest(x) : 0)
                         : Cheapest(x, column_cost_[j] * cost);
        value = std::copysign(coder_.values[static_cast<size_t>(q)] * step, t);
      }
      magnitudes_[static_cast<size_t>(q)] += count;
      if (q != 0) {
        const auto b = static_cast<size_t>(std::min(q, 3) - 1);
        const double w = count * weight * column_cost_[j];
        shortfall_[b] += w * (static_cast<double>(q) - static_cast<double>(x));
        shortfall_weight_[b] += w;
      }
      row_error += static_cast<double>((t - value) * (t - value) * column_cost_[j]);
      const float error = target[j] - value;
      target[j] = error;
      if (levels != nullptr) levels[j] = static_cast<int8_t>(t < 0 ? -q : q);
      if (state_ != nullptr) {
        const float* root = state_->root.data() + j * columns_ + first;
        for (uint64_t later = c + 1; later < width; ++later) moved[later] += error * root[later];
      }
    }
    error_ += count * weight * row_error;
  }

  int Nearest(float x) const {  // magnitudes from 1 on, half a step below their number
    return std::clamp(static_cast<int>(std::min(x, 1000.0f)) + 1, 1, coder_.max_level());
  }
  int Cheapest(float x, float cost) const {
    if (x < 0.5f) return 0;
    const int nearest = static_cast<int>(std::min(x + 0.5f, static_cast<float>(coder_.max_level())));
    int best = 0;
    float least = cost * x * x + coder_.price * coder_.bits[0];
    for (int q = std::max(1, nearest - 1); q <= nearest; ++q) {
      const float rest = x - coder_.values[static_cast<size_t>(q)];
      const float loss = cost * rest * rest + coder_.price * coder_.bits[static_cast<size_t>(q)];
      if (loss < least) {
        least = loss;
        best = q;
      }
    }
    return best;
  }

  // The same where anchor + value is rounded to nearest: a level may reach exactly what is wanted, or be lost. Gives
  // the value after rounding.
  float CheapestRounded(float t, float anchor, float step, float cost, int* best) const {
    const float unit = 1 / step;
    const auto rounded = [&](int q) {
      return RoundToBf16(anchor + std::copysign(coder_.values[static_cast<size_t>(q)] * step, t)) - anchor;
    };
    const auto loss = [&](int q, float value) {
      const float rest = (t - value) * unit;
      return cost * rest * rest + coder_.price * coder_.bits[static_cast<size_t>(q)];
    };
    *best = 0;
    float best_value = rounded(0);
    const float x = std::abs(t) * unit;
    if (x < 0.2f) return best_value;
    float least = loss(0, best_value);
    const int top = std::min(static_cast<int>(std::min(x + 0.5f, 1000.0f)) + 1, coder_.max_level());
    for (int q = std::max(1, top - 2); q <= top; ++q) {
      const float value = rounded(q), own = loss(q, value);
      if (own >= least) continue;
      least = own;
      best_value = value;
      *best = q;
    }
    return best_value;
  }

  const ResidualCoder& coder_;
  const InputMoments::State* state_;
  uint64_t columns_;
  std::span<const float> row_weights_;
  double mean_row_ = 0, unit_ = 1;
  std::vector<float> column_cost_, inverse_;  // R_jj^2 over its mean; 1 / R_jj
  std::vector<float> moved_;                  // of the block: sum of earlier errors times R
  std::vector<uint8_t> kept_;
  std::vector<float> saliency_;
  double error_ = 0;
  std::vector<double> magnitudes_;
  std::array<double, 3> shortfall_{}, shortfall_weight_{};
};

void SetBiases(ResidualCoder& coder, const std::array<double, 3>& shortfall) {
  for (size_t b = 0; b < 3; ++b) {
    coder.biases[b] = static_cast<uint8_t>(std::clamp(std::lround(shortfall[b] * 64), 0l, 63l));
  }
  for (size_t q = 1; q < coder.values.size(); ++q) {
    coder.values[q] = static_cast<float>(q) - static_cast<float>(coder.biases[std::min<size_t>(q, 3) - 1]) * kBiasUnit;
  }
}

void SetBits(ResidualCoder& coder, std::span<const double> magnitudes) {
  double total = 0;
  for (const double m : magnitudes) total += m + 0.5;
  coder.bits.resize(magnitudes.size());
  for (size_t q = 0; q < magnitudes.size(); ++q) {
    coder.bits[q] = static_cast<float>(std::log2(total / (magnitudes[q] + 0.5)) + (q > 0 ? 1 : 0));
  }
}

}  // namespace

double ResidualOutcome::bits() const {
  double signs = 0;
  for (size_t q = 1; q < magnitudes.size(); ++q) signs += magnitudes[q];
  return EntropyBits(magnitudes) + signs;
}

RowSample SampleRows(const CompactInput& input, uint64_t wanted, uint64_t heaviest) {
  RowSample sample;
  sample.rows.resize(input.rows);
  std::iota(sample.rows.begin(), sample.rows.end(), 0);
  sample.counts.assign(input.rows, 1);
  if (input.rows <= wanted) return sample;
  std::vector<double> energy(input.rows);
  for (uint64_t i = 0; i < input.rows; ++i) {
    double sum = 0;
    for (const float d : input.delta.subspan(i * input.columns, input.columns)) sum += static_cast<double>(d) * d;
    energy[i] = sum * (input.row_weights.empty() ? 1.0 : static_cast<double>(input.row_weights[i]));
  }
  std::sort(sample.rows.begin(), sample.rows.end(),
            [&](uint64_t a, uint64_t b) { return energy[a] != energy[b] ? energy[a] > energy[b] : a < b; });
  const uint64_t top = std::min(heaviest, wanted - 1), others = input.rows - top, strata = wanted - top;
  std::vector<uint64_t> chosen(sample.rows.begin(), sample.rows.begin() + static_cast<ptrdiff_t>(top));
  sample.counts.assign(top, 1);
  for (uint64_t s = 0; s < strata; ++s) {
    const uint64_t begin = top + s * others / strata, end = top + (s + 1) * others / strata;
    chosen.push_back(sample.rows[begin + (end - begin) / 2]);
    sample.counts.push_back(static_cast<double>(end - begin));
  }
  sample.rows = std::move(chosen);
  return sample;
}

ResidualOutcome QuantizeResidual(const CompactInput& input, const LowRankFit& low_rank, const ResidualCoder& coder,
                                 const RowSample& sample, bool untouched, std::vector<int8_t>* levels, float aim) {
  const LowRankRows lower(low_rank, input.columns);
  Sweep sweep(input, coder);
  if (levels != nullptr) levels->resize(input.delta.size());
  const bool rounds = !input.base.empty() && !coder.prune;
  std::vector<float> panel, anchors, scratch;
  std::vector<double> energies(kPanelRows);
  double left = 0;
  for (uint64_t first = 0; first < sample.rows.size(); first += kPanelRows) {
    const uint64_t count = std::min<uint64_t>(kPanelRows, sample.rows.size() - first);
    panel.resize(count * input.columns);
    for (uint64_t i = 0; i < count; ++i) {
      const auto row = input.delta.subspan(sample.rows[first + i] * input.columns, input.columns);
      std::transform(row.begin(), row.end(), panel.begin() + static_cast<ptrdiff_t>(i * input.columns),
                     [&](float d) { return aim * d; });
    }
    lower.Subtract(std::span(sample.rows).subspan(first, count), panel.data());
    if (rounds) {
      anchors.resize(panel.size());
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t begin = sample.rows[first + i] * input.columns;
        for (uint64_t j = 0, e = i * input.columns; j < input.columns; ++j, ++e)
          anchors[e] = FromBf16(input.base[begin + j]) + (aim * input.delta[begin + j] - panel[e]);
      }
    }
    if (untouched) {
      RowEnergies(input.moments, panel.data(), count, input.columns, scratch, energies.data());
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t row = sample.rows[first + i];
        left += sample.counts[first + i] * energies[i] *
                (input.row_weights.empty() ? 1.0 : static_cast<double>(input.row_weights[row]));
      }
    }
    sweep.Panel(sample.rows.data() + first, sample.counts.data() + first, count, panel.data(),
                rounds ? anchors.data() : nullptr,
                levels != nullptr ? levels->data() + first * input.columns : nullptr);
  }
  ResidualOutcome out = sweep.Outcome();
  out.untouched = left;
  return out;
}

ResidualCoder FitDeadZone(const CompactInput& input, const LowRankFit& low_rank, float step) {
  ResidualCoder coder;
  const float fineness = input.row_weights.empty() ? 1 : kWeightedFineness;
  coder.steps = {FromBf16(ToBf16(step / fineness))};
  coder.price = kPrice * fineness * fineness;
  coder.values.resize(8);
  SetBiases(coder, input.moments == nullptr && input.base.empty() ? std::array<double, 3>{0.1, 0.05, 0.02}
                                                                  : std::array<double, 3>{});
  const RowSample sample = SampleRows(input, kFitRows, kFitRows / 4);
  std::vector<double> magnitudes(coder.values.size());
  for (const uint64_t row : sample.rows) {
    for (const float d : input.delta.subspan(row * input.columns, input.columns)) {
      const float x = std::min(std::abs(d) / std::max(coder.steps[0], std::numeric_limits<float>::min()), 7.0f);
      ++magnitudes[static_cast<size_t>(x + kDeadZoneRounding)];
    }
  }
  SetBits(coder, magnitudes);
  for (int round = 0; round < kFitRounds; ++round) {
    const ResidualOutcome outcome = QuantizeResidual(input, low_rank, coder, sample, false, nullptr);
    SetBits(coder, outcome.magnitudes);
    // Under feedback a level's mean is no better than its number: what it misses, later columns make good.
    if (input.moments == nullptr && input.base.empty()) SetBiases(coder, outcome.shortfall);
  }
  return coder;
}

ResidualCoder FitPruning(const CompactInput& input, const CompactChoice& choice) {
  ResidualCoder coder;
  coder.prune = true;
  coder.keep = 1 - choice.sparsity;
  coder.wide = choice.bits > 3;
  coder.group_elems = choice.group_elems >= input.delta.size() ? 0 : choice.group_elems;
  coder.biases = {32, 32, 32};
  const int top = std::min(1 << (choice.bits - 1), coder.wide ? 127 : 7);
  for (int q = 0; q <= top; ++q) coder.values.push_back(q == 0 ? 0 : static_cast<float>(q) - 0.5f);
  const uint64_t group = coder.group_elems == 0 ? input.delta.size() : coder.group_elems;
  std::vector<float> sizes;
  for (uint64_t begin = 0; begin < input.delta.size(); begin += group) {
    const auto values = input.delta.subspan(begin, std::min<uint64_t>(group, input.delta.size() - begin));
    sizes.clear();
    for (const float d : values) sizes.push_back(std::abs(d));
    const auto dropped =
        static_cast<size_t>(std::lround(static_cast<double>(choice.sparsity) * static_cast<double>(sizes.size())));
    if (dropped >= sizes.size()) {
      coder.steps.push_back(0);
      coder.thresholds.push_back(std::numeric_limits<float>::infinity());
      continue;
    }
    std::nth_element(sizes.begin(), sizes.begin() + static_cast<ptrdiff_t>(dropped), sizes.end());
    coder.thresholds.push_back(sizes[dropped]);
    const std::span<const float> kept = std::span(sizes).subspan(dropped);
    const float largest = *std::max_element(kept.begin(), kept.end());
    // The step of least square error among those from "the largest value fits" down.
    constexpr size_t kLooked = 1 << 14;
    const size_t stride = kept.size() / kLooked + 1;
    double least = std::numeric_limits<double>::infinity();
    float best = 0;
    for (float step = largest / (static_cast<float>(top) - 0.5f) * 1.001f, last = step / 32; step >= last && step > 0;
         step *= 0.88f) {
      double loss = 0;
      for (size_t k = 0; k < kept.size(); k += stride) {
        const int q = std::clamp(static_cast<int>(std::min(kept[k] / step, 1000.0f)) + 1, 1, top);
        const double rest = static_cast<double>(kept[k]) - (q - 0.5) * static_cast<double>(step);
        loss += rest * rest;
      }
      if (loss < least) {
        least = loss;
        best = step;
      }
    }
    coder.steps.push_back(FromBf16(ToBf16(best)));
  }
  return coder;
}

}  // namespace modelstore
