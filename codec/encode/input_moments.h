// What the parts of the compact encoder know of a tensor's inputs (layer: codec/encode, internal).
#pragma once

#include <cstdint>
#include <vector>

#include "codec/encode/compact_encoder.h"

namespace modelstore {

// With H damped: H = unit * R R^T, R upper triangular. For a row e of errors, e H e^T = unit * |e R|^2, and column j of
// e R depends on the errors of columns up to j alone: that is what low rank (singular vectors of D R) and error
// feedback (column by column) both need, so no inverse and no second factor is kept.
struct InputMoments::State {
  uint64_t n = 0;
  double unit = 1;             // mean of H's diagonal: R's own numbers stay near 1
  std::vector<float> root;     // R, row-major, zeros below the diagonal
  std::vector<float> weights;  // R_jj^2: what an error costs that no later column makes good
};

}  // namespace modelstore
