#include "codec/encode/dense_solvers.h"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>

namespace modelstore {
namespace {

using ConstMap = Eigen::Map<const Eigen::MatrixXd>;

ConstMap Square(std::span<const double> a, uint64_t n) {
  return {a.data(), static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(n)};
}
ConstMap Tall(std::span<const double> b, uint64_t n) {
  return {b.data(), static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(b.size() / n)};
}
std::vector<double> ToVector(const Eigen::MatrixXd& m) { return {m.data(), m.data() + m.size()}; }

}  // namespace

std::optional<EigenPairs> SymmetricEigenPairs(std::span<const double> a, uint64_t n) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(Square(a, n));
  if (solver.info() != Eigen::Success) return std::nullopt;
  return EigenPairs{ToVector(solver.eigenvalues()), ToVector(solver.eigenvectors())};
}

std::optional<std::vector<double>> CholeskyFactor(std::span<const double> a, uint64_t n) {
  const Eigen::LLT<Eigen::MatrixXd> factor(Square(a, n));
  if (factor.info() != Eigen::Success) return std::nullopt;
  return ToVector(Eigen::MatrixXd(factor.matrixL()));
}

std::vector<double> SolveByCholesky(std::span<const double> factor, uint64_t n, std::span<const double> b) {
  const ConstMap lower = Square(factor, n);
  Eigen::MatrixXd x = Tall(b, n);
  lower.triangularView<Eigen::Lower>().solveInPlace(x);
  lower.transpose().triangularView<Eigen::Upper>().solveInPlace(x);
  return ToVector(x);
}

std::vector<double> SolveSymmetric(std::span<const double> a, uint64_t n, std::span<const double> b) {
  const Eigen::LDLT<Eigen::MatrixXd> factor(Square(a, n));
  return ToVector(factor.solve(Tall(b, n)));
}

}  // namespace modelstore
