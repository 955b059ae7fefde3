// Decompositions of dense symmetric matrices in float64 (layer: codec/encode), by Eigen: templates of many seconds to
// compile, so one file holds them for all. Matrices are column-major.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace modelstore {

// a = V diag(values) V^T
struct EigenPairs {
  std::vector<double> values;   // n, ascending
  std::vector<double> vectors;  // n x n: a column each
};
// Of the n x n matrix `a`. Nothing when it does not converge.
std::optional<EigenPairs> SymmetricEigenPairs(std::span<const double> a, uint64_t n);

// The n x n lower triangle L of a = L L^T, zeros above it. Nothing when `a` is not positive definite.
std::optional<std::vector<double>> CholeskyFactor(std::span<const double> a, uint64_t n);

// The n x k solution of L L^T x = b for what CholeskyFactor gave.
std::vector<double> SolveByCholesky(std::span<const double> factor, uint64_t n, std::span<const double> b);

// The n x k solution of a x = b, by L D L^T with pivots: `a` may be indefinite or nearly singular.
std::vector<double> SolveSymmetric(std::span<const double> a, uint64_t n, std::span<const double> b);

}  // namespace modelstore
