#include "codec/encode/input_moments.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <string>

namespace modelstore {
namespace {

constexpr double kLargestDamping = 100 * kMomentsDamping;  // ten times more until the factorization succeeds

// Rounding of a float32 X^T X leaves less asymmetry than this share of sqrt(h_ii h_jj).
constexpr double kAsymmetry = 1e-2;

std::string At(uint64_t i, uint64_t j) { return "[" + std::to_string(i) + ", " + std::to_string(j) + "]"; }

// Calls visit(i, j) for j <= i in tiles, so that [j, i] is as near as [i, j].
template <typename VisitFn>
void ForEachPair(uint64_t n, const VisitFn& visit) {
  constexpr uint64_t kTile = 32;
  for (uint64_t first = 0; first < n; first += kTile) {
    for (uint64_t other = 0; other <= first; other += kTile) {
      for (uint64_t i = first; i < std::min(first + kTile, n); ++i) {
        for (uint64_t j = other; j < std::min(other + kTile, i + 1); ++j) visit(i, j);
      }
    }
  }
}

Status Check(std::span<const float> h, uint64_t n) {
  if (n == 0 || h.size() / n != n || h.size() % n != 0) {
    return InvalidArgument("moments of " + std::to_string(h.size()) + " values are no matrix of " + std::to_string(n) +
                           " x " + std::to_string(n));
  }
  double trace = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const double d = h[i * n + i];
    if (!std::isfinite(d) || d < 0) {
      return InvalidArgument("moments are negative or not finite at " + At(i, i) + ": they must be X^T X / n");
    }
    trace += d;
  }
  if (!(trace > 0)) return InvalidArgument("moments are all zero: no input was seen");
  const double floor = 1e-6 * trace / static_cast<double>(n);
  std::vector<double> root(n);
  for (uint64_t i = 0; i < n; ++i) root[i] = std::sqrt(static_cast<double>(h[i * n + i]));
  Status wrong;
  ForEachPair(n, [&](uint64_t i, uint64_t j) {
    const double a = h[i * n + j], b = h[j * n + i];
    if (std::abs(a - b) <= kAsymmetry * root[i] * root[j] + floor || !wrong.ok()) return;
    wrong = InvalidArgument(std::isfinite(a) && std::isfinite(b)
                                ? "moments are not symmetric at " + At(i, j) + ": they must be X^T X / n"
                                : "moments are not finite at " + At(i, j));
  });
  return wrong;
}

}  // namespace

InputMoments::InputMoments(std::unique_ptr<State> state) : state_(std::move(state)) {}
InputMoments::~InputMoments() = default;

uint64_t InputMoments::MemoryBytes(uint64_t n) { return n * n * (2 * sizeof(double) + sizeof(float)) + n * 64; }

Result<std::shared_ptr<const InputMoments>> InputMoments::Prepare(std::span<const float> h, uint64_t n) {
  RETURN_IF_ERROR(Check(h, n));
  auto state = std::make_unique<State>();
  state->n = n;
  double trace = 0;
  for (uint64_t i = 0; i < n; ++i) trace += h[i * n + i];
  state->unit = trace / static_cast<double>(n);
  // H with rows and columns reversed is L L^T; reversed again, L is the upper factor.
  const auto size = static_cast<Eigen::Index>(n);
  Eigen::MatrixXd reversed(size, size);
  for (double damping = kMomentsDamping; damping <= kLargestDamping; damping *= 10) {
    ForEachPair(n, [&](uint64_t i, uint64_t j) {
      const double mean = (static_cast<double>(h[i * n + j]) + h[j * n + i]) / 2;
      reversed(static_cast<Eigen::Index>(n - 1 - j), static_cast<Eigen::Index>(n - 1 - i)) =
          mean / state->unit + (i == j ? damping : 0);
    });
    Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Lower> factor(reversed);
    if (factor.info() != Eigen::Success) continue;
    state->root.assign(n * n, 0);
    state->weights.resize(n);
    // reversed is column-major: its column n - 1 - j is R's column j.
    ForEachPair(n, [&](uint64_t j, uint64_t i) {
      state->root[i * n + j] =
          static_cast<float>(reversed(static_cast<Eigen::Index>(n - 1 - i), static_cast<Eigen::Index>(n - 1 - j)));
    });
    for (uint64_t i = 0; i < n; ++i) state->weights[i] = state->root[i * n + i] * state->root[i * n + i];
    return std::shared_ptr<const InputMoments>(new InputMoments(std::move(state)));
  }
  return InvalidArgument("moments are not positive, even damped: they must be X^T X / n");
}

}  // namespace modelstore
