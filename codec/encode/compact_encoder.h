// Compact encoding of one tensor's delta: quantized low-rank factors and a pruned, quantized residual
// (layer: codec/encode; the numbers are made with Eigen over BLAS in the .cc). No I/O and no threads of its own: the
// caller works on several tensors at once, and may lend a ParallelFor.
//
//   InputMoments::Prepare(H)                       once for tensors that share an input (q, k, v; gate, up)
//   AnalyzeTensor(delta, moments, ladder)       -> what each rung would cost and leave: the budget planner's input
//   EncodeTensor(delta, moments, choice)        -> levels, scales, the measured drift
//
// Sources: docs/compact.md. Low rank in the metric of the moments: SVD of D L, H = L L^T. Residual with error feedback:
// OBS as in GPTQ and SparseGPT (Aggressive Post-Training Compression: prune and quantize in one second-order pass),
// with an entropy-constrained dead zone in place of a mask.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "codec/decode/compact_frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// Share of the mean diagonal that is added to the moments' diagonal, for encoding and measuring alike. A few directions
// hold most of the energy of a transformer's inputs; with the usual 0.01 error feedback hides errors from those alone,
// and the divergence from the finetune does not follow. On the real pair at 20x, 0.01 needs 14 % more bytes than 0.4
// for the same divergence; 0.6 has the same as 0.4 and keeps more of the gain; 1 diverges 20 % more.
inline constexpr double kMomentsDamping = 0.6;

// Second moments of a tensor's inputs, ready for use: damped and factored. Immutable.
class InputMoments {
 public:
  // `h`: n x n, row-major, symmetric (float32, as the file of moments has it). Adds kMomentsDamping, more where that
  // is not enough for a factor. Errors: InvalidArgument (not n x n, not finite, negative diagonal, all zero, not
  // symmetric, not positive after damping).
  static Result<std::shared_ptr<const InputMoments>> Prepare(std::span<const float> h, uint64_t n);
  // Bytes that preparing and keeping them takes at most, besides `h`.
  static uint64_t MemoryBytes(uint64_t n);
  ~InputMoments();
  struct State;
  const State& state() const { return *state_; }

 private:
  explicit InputMoments(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Calls task(i) for every i < n, in any order, perhaps several at once; returns when all are done. When a task throws,
// some may be skipped and the call throws.
using ParallelFor = std::function<void(size_t n, const std::function<void(size_t)>& task)>;

struct CompactInput {
  uint64_t rows = 0, columns = 0;
  std::span<const float> delta;           // finetune - base, row-major, finite
  const InputMoments* moments = nullptr;  // null: the identity
  // How much a row's error counts (embeddings: ROWS of the moments' file). Empty: all alike.
  std::span<const float> row_weights;
  // A BF16 tensor's base: its residual is then chosen with the rounding of what it makes in mind, and rounded to
  // nearest. Empty: values are not rounded, or by the dither.
  std::span<const uint16_t> base{};  // patterns
  bool all_rows = false;             // each row has factors, also where they do not pay
  std::optional<double> energy{};    // tr(D H D^T), row-weighted, when it is known already
  // For panels of rows, which are independent; results are the same. Null: one after the other.
  const ParallelFor* parallel = nullptr;
};

// What is kept of a tensor. All zero: nothing (the base's tensor as it is).
struct CompactChoice {
  uint32_t rank = 0;
  float factor_step = 1.75f;  // levels of the factors: their rms in steps is 1 / factor_step
  float residual_step = 0;    // in standard deviations of the delta's elements; 0: no residual
  // Of the whole delta (docs/compact.md, "Scale"). 0: what makes its part in the finetune's direction whole, at
  // most 1.75; 1 where `bits` are given, or rows are weighted and there is no residual.
  float scale = 1.0f;
  // Literal GPT-Zip instead of all above, when bits > 0: the share `sparsity` of the elements of each group of
  // `group_elems` (0: the tensor) pruned, the rest quantized to `bits` bits.
  uint32_t bits = 0;
  float sparsity = 0;
  uint64_t group_elems = 0;
  bool operator==(const CompactChoice&) const = default;
};

// An encoded tensor.
struct CompactTensor {
  CompactSegment segment;           // geometry, rank, residual, biases, row mask, drift code
  std::vector<int8_t> right, left;  // levels: v rank x columns, u (rows with factors) x rank
  std::vector<int8_t> residual;     // rows x columns levels, or empty
  std::vector<uint16_t> scales;     // BF16: `rank` of them, then the residual's steps
  double error = 0, energy = 0;     // tr(E H E^T) and tr(D H D^T), row-weighted; drift = error / energy
  double bytes = 0;                 // entropy of all levels, scales and the row mask
};

// One rung: what a choice would cost and leave.
struct CompactEstimate {
  CompactChoice choice;
  double bytes = 0;  // entropy-coded factors, scales, residual
  double error = 0;  // estimated tr(E H E^T)
};
struct CompactAnalysis {
  double energy = 0;                       // tr(D H D^T)
  std::vector<CompactEstimate> estimates;  // the first: nothing kept (0 bytes, error = energy)
};

// Bytes that analysing or encoding such a tensor takes at most, besides its input.
uint64_t CompactMemoryBytes(uint64_t rows, uint64_t columns, bool has_moments, const CompactChoice& largest);

// Estimates the choices of `ladder` (any order). Errors: InvalidArgument (sizes disagree, values not finite).
Result<CompactAnalysis> AnalyzeTensor(const CompactInput& input, std::span<const CompactChoice> ladder);

// Errors: InvalidArgument as above.
Result<CompactTensor> EncodeTensor(const CompactInput& input, const CompactChoice& choice);

}  // namespace modelstore
