#include "codec/encode/principal_axes.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <string>

#include "codec/encode/dense_solvers.h"

namespace modelstore {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;
using Index = Eigen::Index;

// Of the mean energy of what is kept: how far a direction without energy may be amplified.
constexpr double kReaderDamping = 1e-6, kMostDamping = 1e-3;

Status Check(std::span<const double> c, uint64_t n, uint64_t k) {
  if (n == 0 || k == 0 || k > n || c.size() / n != n || c.size() % n != 0)
    return InvalidArgument("moments of " + std::to_string(c.size()) + " values are no matrix of " + std::to_string(n) +
                           " x " + std::to_string(n) + " with " + std::to_string(k) + " components");
  if (!std::ranges::all_of(c, [](double x) { return std::isfinite(x); }))
    return InvalidArgument("moments are not finite once the norm's weights are taken out of them");
  return OkStatus();
}

std::vector<double> ToVector(const Matrix& m) { return {m.data(), m.data() + m.size()}; }

}  // namespace

Result<std::vector<double>> PrincipalAxes(std::span<const double> c, uint64_t n, uint64_t k) {
  RETURN_IF_ERROR(Check(c, n, k));
  const auto size = static_cast<Index>(n), kept = static_cast<Index>(k);
  const std::optional<EigenPairs> pairs = SymmetricEigenPairs(c, n);
  if (!pairs) return InvalidArgument("the moments' principal components do not converge");
  Matrix axes =
      Eigen::Map<const Eigen::MatrixXd>(pairs->vectors.data(), size, size).rightCols(kept).rowwise().reverse();
  for (Index j = 0; j < kept; ++j) {
    Index largest = 0;
    axes.col(j).cwiseAbs().maxCoeff(&largest);
    if (axes(largest, j) < 0) axes.col(j) *= -1;
  }
  return ToVector(axes);
}

Result<std::vector<double>> LeastSquaresReader(std::span<const double> c, std::span<const double> q, uint64_t n,
                                               uint64_t k) {
  RETURN_IF_ERROR(Check(c, n, k));
  const auto size = static_cast<Index>(n), kept = static_cast<Index>(k);
  const ConstMap axes(q.data(), size, kept);
  const Matrix cq = ConstMap(c.data(), size, size) * axes;
  Eigen::MatrixXd energy = axes.transpose() * cq;
  double damping = kReaderDamping * energy.trace() / static_cast<double>(k);
  if (!(damping > 0)) return InvalidArgument("the moments have no energy");
  energy.diagonal().array() += damping;
  const auto factorized = [&] { return CholeskyFactor({energy.data(), k * k}, k); };
  std::optional<std::vector<double>> factor = factorized();
  // Moments in float32 of which much was taken away may be negative by their rounding.
  while (!factor) {
    if (damping > kMostDamping * energy.trace() / static_cast<double>(k))
      return InvalidArgument("moments are not positive: they must be X^T X / n");
    energy.diagonal().array() += 9 * damping;
    damping *= 10;
    factor = factorized();
  }
  // (C Q + d Q) (Q^T C Q + d)^-1 is Q wherever C is 0.
  // The solution is the transpose, column-major: row-major what is asked for.
  const Matrix target = cq + damping * axes;
  return SolveByCholesky(*factor, k, {target.data(), n * k});
}

std::vector<double> TransposedProduct(std::span<const double> a, std::span<const double> b, uint64_t n, uint64_t k,
                                      uint64_t m) {
  const auto size = static_cast<Index>(n);
  return ToVector(ConstMap(a.data(), size, static_cast<Index>(k)).transpose() *
                  ConstMap(b.data(), size, static_cast<Index>(m)));
}

}  // namespace modelstore
