#include "codec/encode/low_rank.h"

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "codec/encode/delta_math.h"
#include "codec/encode/dense_solvers.h"
#include "codec/encode/input_moments.h"

namespace modelstore {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using ConstLevels = Eigen::Map<const Eigen::Matrix<int8_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
using Index = Eigen::Index;

using ColumnMap = Eigen::Map<const Eigen::MatrixXd>;

std::span<const double> Values(const Eigen::MatrixXd& m) { return {m.data(), static_cast<size_t>(m.size())}; }

constexpr uint32_t kExtraColumns = 8;  // of the sketch: Halko, Martinsson, Tropp 2011
constexpr int kPowerSteps = 3;
constexpr float kMaxFactorLevel = 127;
// Singular values below this share of the largest are noise of float32.
constexpr double kNoise = 1e-6;
// A row mask pays its own bits only when it drops at least this share of the rows.
constexpr double kMaskedShare = 1.0 / 8;

// W^1/2 D R, never formed.
class Weighted {
 public:
  explicit Weighted(const CompactInput& input)
      : delta_(input.delta.data(), static_cast<Index>(input.rows), static_cast<Index>(input.columns)),
        moments_(input.moments) {
    if (!input.row_weights.empty()) {
      row_root_ =
          Eigen::Map<const Eigen::VectorXf>(input.row_weights.data(), static_cast<Index>(input.rows)).cwiseSqrt();
    }
  }

  // columns x k -> columns x k, by R or its transpose
  Matrix Root(const Matrix& x) const {
    if (moments_ == nullptr) return x;
    Matrix out(x.rows(), x.cols());
    ForEachBlock([&](Index first, Index count) {
      const Index after = x.rows() - first;
      out.middleRows(first, count).noalias() = RootMap().block(first, first, count, after) * x.bottomRows(after);
    });
    return out;
  }
  Matrix RootTransposed(const Matrix& x) const {
    if (moments_ == nullptr) return x;
    Matrix out(x.rows(), x.cols());
    ForEachBlock([&](Index first, Index count) {
      const Index before = first + count;
      out.middleRows(first, count).noalias() = RootMap().block(0, first, before, count).transpose() * x.topRows(before);
    });
    return out;
  }
  // rows x k
  Matrix Times(const Matrix& x) const {
    Matrix y(delta_.rows(), x.cols());
    y.noalias() = delta_ * Root(x);
    if (row_root_.size() > 0) y.array().colwise() *= row_root_.array();
    return y;
  }
  // columns x k; y is spoiled
  Matrix TransposedTimes(Matrix& y) const {
    if (row_root_.size() > 0) y.array().colwise() *= row_root_.array();
    Matrix x(delta_.cols(), y.cols());
    x.noalias() = delta_.transpose() * y;
    return RootTransposed(x);
  }
  // V with V R = x^T, x columns x k
  Matrix RightOf(const Matrix& x) const {
    Matrix v = x.transpose();
    if (moments_ != nullptr) RootMap().triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(v);
    return v;
  }

 private:
  template <typename VisitFn>
  void ForEachBlock(const VisitFn& visit) const {
    for (Index first = 0; first < delta_.cols(); first += kRootBlock)
      visit(first, std::min(kRootBlock, delta_.cols() - first));
  }
  ConstMap RootMap() const {
    const InputMoments::State& state = moments_->state();
    return ConstMap(state.root.data(), static_cast<Index>(state.n), static_cast<Index>(state.n));
  }
  ConstMap delta_;
  const InputMoments* moments_;
  Eigen::VectorXf row_root_;
};

// Orthonormal columns of the same span, by Cholesky's QR, twice: the first pass is shifted, so that a span of fewer
// dimensions survives it. Columns without a dimension of their own end near 0.
void Orthonormalize(Matrix& y) {
  for (int pass = 0; pass < 2; ++pass) {
    Matrix product(y.cols(), y.cols());
    product.noalias() = y.transpose() * y;
    Eigen::MatrixXd gram = product.cast<double>();
    const double trace = gram.trace();
    if (!(trace > 0) || !std::isfinite(trace)) return;
    gram.diagonal().array() += trace * 1e-7;
    const std::optional<std::vector<double>> factor = CholeskyFactor(Values(gram), static_cast<uint64_t>(gram.cols()));
    if (!factor) return;
    const Matrix root = ColumnMap(factor->data(), gram.rows(), gram.cols()).cast<float>();
    root.transpose().triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(y);
  }
}

// Numbers in [-1, 1), the same on every machine.
Matrix Sketch(Index rows, Index columns) {
  Matrix m(rows, columns);
  uint64_t state = 0x9e3779b97f4a7c15;
  for (Index i = 0; i < m.size(); ++i) {
    uint64_t z = (state += 0x9e3779b97f4a7c15);  // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    m.data()[i] = static_cast<float>(static_cast<int32_t>((z ^ (z >> 31)) >> 32)) * 0x1p-31f;
  }
  return m;
}

// Rounds `values` / step to levels; returns the step: factor_step x their rms (`weights`: of the values, or null),
// wider where the largest value would not fit.
float Quantize(const float* values, Index count, Index stride, const float* weights, float factor_step,
               int8_t* levels) {
  double square = 0, weight = 0;
  float largest = 0;
  for (Index i = 0; i < count; ++i) {
    const float x = values[i * stride];
    const double w = weights != nullptr ? static_cast<double>(weights[i]) : 1.0;
    square += w * x * x;
    weight += w;
    largest = std::max(largest, std::abs(x));
  }
  const double rms = weight > 0 ? std::sqrt(square / weight) : 0;
  const float step = FromBf16(ToBf16(std::max(static_cast<float>(rms) * factor_step, largest / kMaxFactorLevel)));
  for (Index i = 0; i < count; ++i) {
    const float level = step > 0 ? std::nearbyint(values[i * stride] / step) : 0;
    levels[i * stride] = static_cast<int8_t>(std::clamp(level, -kMaxFactorLevel, kMaxFactorLevel));
  }
  return step;
}

// The rows whose captured energy pays the bits of their levels, when the others are many. At the margin rows + columns
// levels more buy the energy of the next component; a row costs `rank` levels.
std::vector<uint8_t> PayingRows(const std::vector<double>& captured, double next_energy, Index columns, Index rank) {
  std::vector<uint8_t> kept(captured.size(), 1);
  auto count = static_cast<double>(captured.size());
  const double rows = count;
  for (int round = 0; round < 3; ++round) {
    const double price = static_cast<double>(rank) * next_energy / (count + static_cast<double>(columns));
    count = 0;
    for (size_t i = 0; i < captured.size(); ++i) count += kept[i] = captured[i] > price;
  }
  if (rows - count < kMaskedShare * rows) kept.clear();
  return kept;
}

}  // namespace

void LowRankFit::ScaleBy(float factor) {
  for (float& s : scales) s = FromBf16(ToBf16(s * factor));
  SetError();
}

void LowRankFit::SetError() {
  const auto r = static_cast<Index>(rank);
  const Eigen::VectorXd s = Eigen::Map<const Eigen::VectorXf>(scales.data(), r).cast<double>();
  error = std::max(0.0, energy + s.dot(Eigen::Map<const Eigen::MatrixXd>(normal.data(), r, r) * s) -
                            2 * s.dot(Eigen::Map<const Eigen::VectorXd>(gain.data(), r)));
}

LowRankRows::LowRankRows(const LowRankFit& fit, uint64_t columns)
    : fit_(fit), columns_(columns), right_(fit.right.begin(), fit.right.end()) {
  uint64_t before = 0;
  for (const uint64_t word : fit.row_mask) {
    rows_before_.push_back(before);
    before += static_cast<uint64_t>(std::popcount(word));
  }
}

void LowRankRows::Subtract(std::span<const uint64_t> rows, float* panel) const {
  if (fit_.rank == 0) return;
  const auto count = static_cast<Index>(rows.size()), r = static_cast<Index>(fit_.rank),
             columns = static_cast<Index>(columns_);
  Matrix left = Matrix::Zero(count, r);
  for (Index i = 0; i < count; ++i) {
    uint64_t row = rows[static_cast<size_t>(i)];
    if (!fit_.row_mask.empty()) {
      const uint64_t word = fit_.row_mask[row / 64], bit = 1ull << (row % 64);
      if ((word & bit) == 0) continue;
      row = rows_before_[row / 64] + static_cast<uint64_t>(std::popcount(word & (bit - 1)));
    }
    for (Index k = 0; k < r; ++k) {
      left(i, k) =
          static_cast<float>(fit_.left[row * fit_.rank + static_cast<size_t>(k)]) * fit_.scales[static_cast<size_t>(k)];
    }
  }
  Eigen::Map<Matrix>(panel, count, columns).noalias() -= left * ConstMap(right_.data(), r, columns);
}

uint64_t LowRankBasis::MemoryBytes(uint64_t rows, uint64_t columns, uint32_t rank) {
  const uint64_t width = rank + kExtraColumns;
  return (rows * 4 + columns * 5) * width * sizeof(float) + width * width * 64 + rows * 40;
}

LowRankBasis::LowRankBasis(const CompactInput& input, uint32_t rank, float factor_step, double energy)
    : factor_step_(factor_step), energy_(energy) {
  const auto rows = static_cast<Index>(input.rows), columns = static_cast<Index>(input.columns);
  const Index width = std::min<Index>(rank + kExtraColumns, std::min(rows, columns));
  const Weighted map(input);
  Matrix y = map.Times(Sketch(columns, width));
  Orthonormalize(y);
  for (int step = 0; step < kPowerSteps; ++step) {
    Matrix x = map.TransposedTimes(y);
    Orthonormalize(x);
    y = map.Times(x);
    Orthonormalize(y);
  }
  const Matrix x = map.TransposedTimes(y);  // (y^T W^1/2 D R)^T, columns x width
  Matrix product(width, width);
  product.noalias() = x.transpose() * x;
  const Eigen::MatrixXd gram = product.cast<double>();
  const std::optional<EigenPairs> pairs = SymmetricEigenPairs(Values(gram), static_cast<uint64_t>(width));
  if (!pairs) {
    component_energy_.assign(1, 0);
    return;
  }
  const auto values = [&](Index k) { return pairs->values[static_cast<size_t>(k)]; };
  while (rank_ < std::min<Index>(rank, width) && values(width - 1 - rank_) > kNoise * kNoise * values(width - 1) &&
         values(width - 1 - rank_) > 0) {
    ++rank_;
  }
  component_energy_.assign(rank_ + 1, 0);
  for (Index k = 0; k <= rank_ && k < width; ++k) component_energy_[static_cast<size_t>(k)] = values(width - 1 - k);
  if (rank_ == 0) return;
  const Matrix turn = ColumnMap(pairs->vectors.data(), width, width).rightCols(rank_).rowwise().reverse().cast<float>();
  Matrix leading(columns, rank_);
  leading.noalias() = x * turn;
  const Matrix right = map.RightOf(leading);
  QuantizeRight(input, {right.data(), right.data() + right.size()});
}

void LowRankBasis::QuantizeRight(const CompactInput& input, std::vector<float> right) {
  const auto rows = static_cast<Index>(input.rows), columns = static_cast<Index>(input.columns);
  const auto r = static_cast<Index>(rank_);
  right_.resize(right.size());
  for (Index k = 0; k < r; ++k)
    Quantize(right.data() + k * columns, columns, 1, nullptr, factor_step_, right_.data() + k * columns);
  const Matrix v = ConstLevels(right_.data(), r, columns).cast<float>();
  const Weighted map(input);
  const Matrix vr = map.RootTransposed(v.transpose());  // (V R)^T
  Matrix gram(r, r);
  gram.noalias() = vr.transpose() * vr;
  gram_.assign(gram.data(), gram.data() + gram.size());
  product_.resize(input.rows * rank_);
  Eigen::Map<Matrix>(product_.data(), rows, r).noalias() = ConstMap(input.delta.data(), rows, columns) * map.Root(vr);
}

LowRankFit LowRankBasis::Fit(const CompactInput& input, uint32_t rank) const {
  LowRankFit fit;
  fit.rank = std::min(rank, rank_);
  fit.error = fit.energy = energy_;
  if (fit.rank == 0) return fit;
  const auto rows = static_cast<Index>(input.rows), columns = static_cast<Index>(input.columns);
  const auto r = static_cast<Index>(fit.rank);
  const double unit = input.moments != nullptr ? input.moments->state().unit : 1;
  const float* weights = input.row_weights.empty() ? nullptr : input.row_weights.data();

  fit.right.assign(right_.begin(), right_.begin() + r * columns);
  // U: least squares on D H V^T for the V that is stored.
  Matrix product = ConstMap(product_.data(), rows, static_cast<Index>(rank_)).leftCols(r);
  const Eigen::MatrixXd gram =
      Eigen::Map<const Eigen::MatrixXd>(gram_.data(), static_cast<Index>(rank_), static_cast<Index>(rank_))
          .topLeftCorner(r, r);
  Eigen::MatrixXd damped = gram;
  damped.diagonal().array() += 1e-6 * gram.trace() / static_cast<double>(r);
  const std::vector<double> solved = SolveSymmetric(Values(damped), fit.rank, Values(Eigen::MatrixXd::Identity(r, r)));
  const Matrix inverse = ColumnMap(solved.data(), r, r).cast<float>();
  Matrix left(rows, r);
  left.noalias() = product * inverse;

  std::vector<uint8_t> kept;
  if (!input.all_rows) {
    std::vector<double> captured(input.rows);
    for (Index i = 0; i < rows; ++i) {
      const double w = weights != nullptr ? static_cast<double>(weights[i]) : 1.0;
      captured[static_cast<size_t>(i)] = w * left.row(i).cast<double>().dot(product.row(i).cast<double>());
    }
    kept = PayingRows(captured, component_energy_[fit.rank], columns, r);
  }
  std::vector<float> kept_weights;
  Index left_rows = rows;
  if (!kept.empty()) {
    fit.row_mask.assign((input.rows + 63) / 64, 0);
    left_rows = 0;
    for (Index i = 0; i < rows; ++i) {
      if (!kept[static_cast<size_t>(i)]) continue;
      fit.row_mask[static_cast<size_t>(i) / 64] |= 1ull << (i % 64);
      left.row(left_rows) = left.row(i);
      product.row(left_rows) = product.row(i);
      if (weights != nullptr) kept_weights.push_back(weights[i]);
      ++left_rows;
    }
    if (weights != nullptr) weights = kept_weights.data();
  }

  fit.left.resize(static_cast<size_t>(left_rows * r));
  for (Index k = 0; k < r; ++k) {
    Quantize(left.data() + k, left_rows, r, weights, factor_step_, fit.left.data() + k);
  }
  // The scales: least squares for the levels of both factors.
  Eigen::MatrixXd normal = Eigen::MatrixXd::Zero(r, r);
  Eigen::VectorXd gain = Eigen::VectorXd::Zero(r);
  for (Index first = 0; first < left_rows; first += static_cast<Index>(kPanelRows)) {
    const Index count = std::min<Index>(static_cast<Index>(kPanelRows), left_rows - first);
    const Eigen::MatrixXd u = ConstLevels(fit.left.data() + first * r, count, r).cast<double>();
    Eigen::MatrixXd weighted = u;
    if (weights != nullptr) {
      weighted.array().colwise() *= Eigen::Map<const Eigen::ArrayXf>(weights + first, count).cast<double>();
    }
    normal.noalias() += u.transpose() * weighted;
    gain += weighted.cwiseProduct(product.middleRows(first, count).cast<double>()).colwise().sum().transpose();
  }
  normal = normal.cwiseProduct(gram);
  Eigen::MatrixXd solvable = normal;
  solvable.diagonal().array() += 1e-9 * normal.trace() / static_cast<double>(r) + std::numeric_limits<double>::min();
  const std::vector<double> best = SolveSymmetric(Values(solvable), fit.rank, {gain.data(), fit.rank});
  for (Index k = 0; k < r; ++k)
    fit.scales.push_back(FromBf16(ToBf16(static_cast<float>(best[static_cast<size_t>(k)]))));
  normal *= unit;
  gain *= unit;
  fit.normal.assign(normal.data(), normal.data() + normal.size());
  fit.gain.assign(gain.data(), gain.data() + gain.size());
  fit.SetError();
  double bits = LevelBits(fit.right) + LevelBits(fit.left) + 16 * static_cast<double>(r);
  if (!fit.row_mask.empty())
    bits += EntropyBits(std::vector<double>{static_cast<double>(rows - left_rows), static_cast<double>(left_rows)});
  fit.bytes = bits / 8;
  return fit;
}

}  // namespace modelstore
