#include "codec/encode/residual.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "codec/encode/delta_math.h"
#include "codec/encode/input_moments.h"
#include "codec/kernels/residual_sweep.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using Index = Eigen::Index;

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

using ColumnMap = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;

// Quantizes panels of rows; collects what comes out. A panel lies column by column, so that a column's step is taken in
// all of its rows at once (codec/kernels/residual_sweep.h).
class Sweep {
 public:
  Sweep(const CompactInput& input, const LowRankFit& low_rank, const ResidualCoder& coder, float aim, bool with_cross)
      : input_(input),
        lower_(low_rank, input.columns),
        coder_(coder),
        state_(input.moments != nullptr ? &input.moments->state() : nullptr),
        columns_(input.columns),
        aim_(aim),
        rounds_(!input.base.empty() && !coder.prune),
        with_cross_(with_cross),
        sweep_(CurrentResidualSweep()) {
    column_cost_.assign(columns_, 1);
    if (state_ != nullptr) {
      double mean = 0;
      for (const float w : state_->weights) mean += w;
      mean /= static_cast<double>(columns_);
      for (uint64_t j = 0; j < columns_; ++j) column_cost_[j] = static_cast<float>(state_->weights[j] / mean);
      unit_ = state_->unit;
    }
    for (const float w : input.row_weights) mean_row_ += static_cast<double>(w) / static_cast<double>(input.rows);
    if (!(mean_row_ > 0)) mean_row_ = 1;
    if (coder.prune) return;
    levels_.step = coder.steps[0];
    for (size_t q = 0; q < coder.values.size(); ++q) {
      levels_.values[q] = coder.values[q];
      levels_.bit_costs[q] = coder.price * coder.bits[q];
    }
  }

  // Of `count` rows, at most kPanelRows; `counts` of each; levels: row-major, or null.
  ResidualOutcome Panel(const uint64_t* rows, const double* counts, uint64_t count, int8_t* levels) {
    out_ = {};
    out_.magnitudes.assign(coder_.values.size(), 0);
    rows_ = rows;
    counts_ = counts;
    count_ = count;
    stride_ = (count + kSweepRows - 1) / kSweepRows * kSweepRows;
    Load();
    for (uint64_t first = 0; first < columns_; first += kSweepColumns) {
      const uint64_t width = std::min<uint64_t>(kSweepColumns, columns_ - first);
      moved_.assign(kSweepColumns * stride_, 0);
      block_levels_.assign(kSweepColumns * stride_, 0);
      if (state_ != nullptr && first > 0) ByRoot(targets_, first, width, first, moved_);
      if (coder_.prune) {
        Prune(first, width);
      } else {
        Quantize(first, width);
      }
      Collect(first, width, levels);
    }
    for (double* sum : {&out_.error, &out_.cross, &out_.energy}) *sum *= unit_;
    return std::move(out_);
  }

 private:
  double WeightOf(uint64_t i) const {
    return input_.row_weights.empty() ? 1.0 : static_cast<double>(input_.row_weights[rows_[i]]);
  }
  // out (width x stride) = (R^T x), x columns x stride, of columns [first, first + width) by rows up to `depth`.
  void ByRoot(const std::vector<float>& x, uint64_t first, uint64_t width, uint64_t depth,
              std::vector<float>& out) const {
    const auto w = static_cast<Index>(width), s = static_cast<Index>(stride_), d = static_cast<Index>(depth);
    Eigen::Map<Matrix>(out.data(), w, s).noalias() =
        ColumnMap(state_->root.data() + first, d, w, Eigen::OuterStride<>(static_cast<Index>(columns_))).transpose() *
        ConstMap(x.data(), d, s);
  }

  void Load() {
    panel_.resize(count_ * columns_);
    for (uint64_t i = 0; i < count_; ++i) {
      const auto row = input_.delta.subspan(rows_[i] * columns_, columns_);
      std::transform(row.begin(), row.end(), panel_.begin() + static_cast<ptrdiff_t>(i * columns_),
                     [&](float d) { return aim_ * d; });
    }
    if (with_cross_) Transpose(panel_, direction_);
    lower_.Subtract(std::span(rows_, count_), panel_.data());
    Transpose(panel_, targets_);
    if (!rounds_) return;
    for (uint64_t i = 0; i < count_; ++i) {
      const uint64_t begin = rows_[i] * columns_;
      for (uint64_t j = 0, e = i * columns_; j < columns_; ++j, ++e)
        panel_[e] = FromBf16(input_.base[begin + j]) + (aim_ * input_.delta[begin + j] - panel_[e]);
    }
    Transpose(panel_, anchors_);
  }
  void Transpose(const std::vector<float>& panel, std::vector<float>& out) const {
    const auto n = static_cast<Index>(count_), c = static_cast<Index>(columns_), s = static_cast<Index>(stride_);
    out.resize(columns_ * stride_);
    Eigen::Map<Matrix> to(out.data(), c, s);
    to.leftCols(n) = ConstMap(panel.data(), n, c).transpose();
    to.rightCols(s - n).setZero();
  }

  // A dead zone, with feedback where there are moments.
  void Quantize(uint64_t first, uint64_t width) {
    row_cost_.assign(stride_, 1);
    if (!input_.row_weights.empty()) {
      for (uint64_t i = 0; i < count_; ++i)
        row_cost_[i] = static_cast<float>((WeightOf(i) / mean_row_ + kLeastRowShare) / (1 + kLeastRowShare));
    }
    SweepTile tile;
    tile.columns = width;
    tile.stride = stride_;
    if (state_ != nullptr) tile.root = state_->root.data() + first * columns_ + first;
    tile.root_stride = columns_;
    tile.cost = column_cost_.data() + first;
    for (uint64_t lane = 0; lane < stride_; lane += kSweepRows) {
      tile.row_cost = row_cost_.data() + lane;
      if (rounds_) tile.anchors = anchors_.data() + first * stride_ + lane;
      tile.targets = targets_.data() + first * stride_ + lane;
      tile.moved = moved_.data() + lane;
      tile.levels = block_levels_.data() + lane;
      sweep_(tile, levels_);
    }
  }

  // Literal GPT-Zip: which elements of a block stay is known before any of them is quantized.
  void Prune(uint64_t first, uint64_t width) {
    MarkPruned(first, width);
    for (uint64_t c = 0; c < width; ++c) {
      const uint64_t j = first + c;
      const float own = state_ != nullptr ? state_->root[j * columns_ + j] : 1;
      for (uint64_t i = 0; i < count_; ++i) {
        const uint64_t at = c * stride_ + i;
        const float step = coder_.steps[coder_.GroupOf(rows_[i] * columns_ + j)];
        const float t = Moved(first, at, own);
        int q = 0;
        if (kept_[at] && step > 0)
          q = std::clamp(static_cast<int>(std::min(std::abs(t) / step, 1000.0f)) + 1, 1, coder_.max_level());
        const float value = std::copysign(coder_.values[static_cast<size_t>(q)] * step, t);
        block_levels_[at] = static_cast<int8_t>(t < 0 ? -q : q);
        targets_[first * stride_ + at] -= value;
        moved_[at] = (t - value) * own;
      }
      if (state_ == nullptr) continue;
      for (uint64_t later = c + 1; later < width; ++later) {
        const float share = state_->root[j * columns_ + first + later];
        for (uint64_t i = 0; i < count_; ++i) moved_[later * stride_ + i] += targets_[j * stride_ + i] * share;
      }
    }
  }
  float Moved(uint64_t first, uint64_t at, float own) const {
    return targets_[first * stride_ + at] + moved_[at] / own;
  }
  // Those stay whose loss would cost most; without moments, from their group's threshold on.
  void MarkPruned(uint64_t first, uint64_t width) {
    kept_.assign(kSweepColumns * stride_, 0);
    saliency_.clear();
    for (uint64_t c = 0; c < width; ++c) {
      const uint64_t j = first + c;
      for (uint64_t i = 0; i < count_; ++i) {
        const uint64_t at = c * stride_ + i;
        if (state_ != nullptr) {
          const float t = Moved(first, at, state_->root[j * columns_ + j]);
          saliency_.push_back(t * t * column_cost_[j]);
        } else {
          kept_[at] = std::abs(targets_[j * stride_ + i]) >= coder_.thresholds[coder_.GroupOf(rows_[i] * columns_ + j)];
        }
      }
    }
    if (state_ == nullptr) return;
    ordered_ = saliency_;
    const auto dropped = static_cast<size_t>(std::lround((1.0 - coder_.keep) * static_cast<double>(ordered_.size())));
    if (dropped >= ordered_.size()) return;
    std::nth_element(ordered_.begin(), ordered_.begin() + static_cast<ptrdiff_t>(dropped), ordered_.end());
    const float threshold = ordered_[dropped];
    for (uint64_t c = 0, e = 0; c < width; ++c) {
      for (uint64_t i = 0; i < count_; ++i, ++e) kept_[c * stride_ + i] = saliency_[e] >= threshold;
    }
  }

  // Sums over a block that is quantized; its levels go to their rows.
  void Collect(uint64_t first, uint64_t width, int8_t* levels) {
    if (with_cross_) {
      along_.resize(kSweepColumns * stride_);
      if (state_ != nullptr) {
        ByRoot(direction_, first, width, first + width, along_);
      } else {
        std::copy_n(direction_.begin() + static_cast<ptrdiff_t>(first * stride_), width * stride_, along_.begin());
      }
    }
    for (uint64_t i = 0; i < count_; ++i) {
      std::array<uint32_t, 256> counts{};
      double error = 0, cross = 0, energy = 0;
      for (uint64_t c = 0; c < width; ++c) {
        const uint64_t at = c * stride_ + i;
        const double z = static_cast<double>(moved_[at]);
        ++counts[static_cast<uint8_t>(block_levels_[at])];
        error += z * z;
        if (with_cross_) {
          const double d = static_cast<double>(along_[at]);
          cross += z * d;
          energy += d * d;
        }
        if (levels != nullptr) levels[i * columns_ + first + c] = block_levels_[at];
      }
      const double weight = counts_[i] * WeightOf(i);
      out_.error += weight * error;
      // `along` is of aim x delta.
      out_.cross += weight * cross / static_cast<double>(aim_);
      out_.energy += weight * energy / (static_cast<double>(aim_) * static_cast<double>(aim_));
      for (size_t q = 0; q < out_.magnitudes.size(); ++q)
        out_.magnitudes[q] += counts_[i] * (counts[q] + (q > 0 ? counts[256 - q] : 0));
    }
    if (state_ == nullptr && !rounds_ && !coder_.prune) NoteShortfall(first, width);
  }
  // Without feedback and rounding a target is what is left of it and the value of its level.
  void NoteShortfall(uint64_t first, uint64_t width) {
    for (uint64_t c = 0; c < width; ++c) {
      for (uint64_t i = 0; i < count_; ++i) {
        const uint64_t at = c * stride_ + i;
        const int level = block_levels_[at], q = std::abs(level);
        if (q == 0) continue;
        const float left = targets_[first * stride_ + at] / levels_.step;
        const double weight = counts_[i] * WeightOf(i);
        const float target = coder_.values[static_cast<size_t>(q)] + (level < 0 ? -left : left);
        const auto b = static_cast<size_t>(std::min(q, 3) - 1);
        out_.shortfall[b] += weight * (static_cast<double>(q) - static_cast<double>(target));
        out_.shortfall_weight[b] += weight;
      }
    }
  }

  const CompactInput& input_;
  const LowRankRows lower_;
  const ResidualCoder& coder_;
  const InputMoments::State* state_;
  const uint64_t columns_;
  const float aim_;
  const bool rounds_, with_cross_;
  const ResidualSweep sweep_;
  SweepLevels levels_;
  double mean_row_ = 0, unit_ = 1;
  std::vector<float> column_cost_;  // R_jj^2 over its mean
  // The panel at hand. Arrays that are not `panel_` lie column by column, `stride_` apart.
  const uint64_t* rows_ = nullptr;
  const double* counts_ = nullptr;
  uint64_t count_ = 0, stride_ = 0;
  std::vector<float> panel_, targets_, anchors_, direction_, row_cost_;
  // … of a block of columns:
  std::vector<float> moved_;  // sum of earlier errors times R, then what is left of the moved targets times R_jj
  std::vector<float> along_;  // (D R)_j
  std::vector<int8_t> block_levels_;
  std::vector<uint8_t> kept_;
  std::vector<float> saliency_, ordered_;
  ResidualOutcome out_;
};

// Sweeps for as many panels as are worked on at once.
class SweepPool {
 public:
  explicit SweepPool(std::function<std::unique_ptr<Sweep>()> make) : make_(std::move(make)) {}
  std::unique_ptr<Sweep> Take() {
    {
      const MutexLock lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<Sweep> sweep = std::move(free_.back());
        free_.pop_back();
        return sweep;
      }
    }
    return make_();
  }
  void GiveBack(std::unique_ptr<Sweep> sweep) {
    const MutexLock lock(mutex_);
    free_.push_back(std::move(sweep));
  }

 private:
  const std::function<std::unique_ptr<Sweep>()> make_;
  Mutex mutex_;
  std::vector<std::unique_ptr<Sweep>> free_ MS_GUARDED_BY(mutex_);
};

// By what levels are too large for their targets, in steps.
void SetBiases(ResidualCoder& coder, const std::array<double, 3>& excess) {
  for (size_t b = 0; b < 3; ++b)
    coder.biases[b] = static_cast<uint8_t>(std::clamp(std::lround(excess[b] * 64), 0l, 63l));
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
                                 const RowSample& sample, float aim, bool with_cross, std::vector<int8_t>* levels) {
  SweepPool sweeps([&] { return std::make_unique<Sweep>(input, low_rank, coder, aim, with_cross); });
  if (levels != nullptr) levels->assign(input.delta.size(), 0);
  std::vector<ResidualOutcome> outcomes(PanelCount(sample.rows.size(), input.columns));
  ForEachPanel(input, sample.rows.size(), [&](size_t panel, uint64_t first, uint64_t count) {
    std::unique_ptr<Sweep> sweep = sweeps.Take();
    outcomes[panel] = sweep->Panel(sample.rows.data() + first, sample.counts.data() + first, count,
                                   levels != nullptr ? levels->data() + first * input.columns : nullptr);
    sweeps.GiveBack(std::move(sweep));
  });
  ResidualOutcome sum;
  sum.magnitudes.resize(coder.values.size());
  for (const ResidualOutcome& outcome : outcomes) {
    sum.error += outcome.error;
    sum.cross += outcome.cross;
    sum.energy += outcome.energy;
    for (size_t q = 0; q < sum.magnitudes.size(); ++q) sum.magnitudes[q] += outcome.magnitudes[q];
    for (size_t b = 0; b < sum.shortfall.size(); ++b) {
      sum.shortfall[b] += outcome.shortfall[b];
      sum.shortfall_weight[b] += outcome.shortfall_weight[b];
    }
  }
  return sum;
}

double EnergyLeft(const CompactInput& input, const LowRankFit& low_rank, const RowSample& sample) {
  const LowRankRows lower(low_rank, input.columns);
  std::vector<double> left(PanelCount(sample.rows.size(), input.columns));
  ForEachPanel(input, sample.rows.size(), [&](size_t p, uint64_t first, uint64_t count) {
    const std::span rows = std::span(sample.rows).subspan(first, count);
    std::vector<float> panel, scratch;
    for (const uint64_t row : rows) {
      const auto values = input.delta.subspan(row * input.columns, input.columns);
      panel.insert(panel.end(), values.begin(), values.end());
    }
    lower.Subtract(rows, panel.data());
    std::vector<double> energies(count);
    RowEnergies(input.moments, panel.data(), count, input.columns, scratch, energies.data());
    for (uint64_t i = 0; i < count; ++i) {
      left[p] += sample.counts[first + i] * energies[i] *
                 (input.row_weights.empty() ? 1.0 : static_cast<double>(input.row_weights[rows[i]]));
    }
  });
  return std::accumulate(left.begin(), left.end(), 0.0);
}

ResidualCoder FitDeadZone(const CompactInput& input, const LowRankFit& low_rank, float step, const RowSample& sample) {
  ResidualCoder coder;
  const float fineness = input.row_weights.empty() ? 1 : kWeightedFineness;
  coder.steps = {FromBf16(ToBf16(std::max(step / fineness, std::numeric_limits<float>::min())))};
  coder.price = kPrice * fineness * fineness;
  coder.values.resize(8);
  SetBiases(coder, input.moments == nullptr && input.base.empty() ? std::array<double, 3>{0.1, 0.05, 0.02}
                                                                  : std::array<double, 3>{});
  std::vector<double> magnitudes(coder.values.size());
  for (const uint64_t row : sample.rows) {
    for (const float d : input.delta.subspan(row * input.columns, input.columns)) {
      const float x = std::min(std::abs(d) / coder.steps[0], 7.0f);
      ++magnitudes[static_cast<size_t>(x + kDeadZoneRounding)];
    }
  }
  SetBits(coder, magnitudes);
  for (int round = 0; round < kFitRounds; ++round) {
    const ResidualOutcome outcome = QuantizeResidual(input, low_rank, coder, sample, 1, false, nullptr);
    SetBits(coder, outcome.magnitudes);
    // Under feedback a level's mean is no better than its number: what it misses, later columns make good.
    if (input.moments != nullptr || !input.base.empty()) continue;
    std::array<double, 3> excess{};
    for (size_t b = 0; b < 3; ++b) {
      if (outcome.shortfall_weight[b] > 0) excess[b] = outcome.shortfall[b] / outcome.shortfall_weight[b];
    }
    SetBiases(coder, excess);
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
