// The principal components of inputs, for slicing (layer: codec/encode; SliceGPT, arXiv:2401.15024). In float64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// The k leading eigenvectors of the symmetric n x n matrix `c` (row-major), as the columns of n x k, orthonormal; each
// has its largest component positive. Errors: InvalidArgument (no n x n, k out of range, not finite, no convergence).
Result<std::vector<double>> PrincipalAxes(std::span<const double> c, uint64_t n, uint64_t k);

// What rebuilds inputs x of second moments `c` from Q^T x with least mean squares: C Q (Q^T C Q)^-1, n x k; Q itself
// where its columns are eigenvectors. Directions without energy are left as Q has them. Errors: as above.
Result<std::vector<double>> LeastSquaresReader(std::span<const double> c, std::span<const double> q, uint64_t n,
                                               uint64_t k);

// a^T b of a: n x k, b: n x m.
std::vector<double> TransposedProduct(std::span<const double> a, std::span<const double> b, uint64_t n, uint64_t k,
                                      uint64_t m);

}  // namespace modelstore
