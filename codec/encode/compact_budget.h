// Which choice each tensor of a compact model gets (layer: codec/encode). Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/encode/compact_encoder.h"
#include "codec/support/status.h"

namespace modelstore {

enum class CompactSchedule : uint8_t {
  // The same rung for every tensor: estimates of the same index (a tensor with fewer of them stays at its last).
  kUniform = 0,
  // After Aggressive Post-Training Compression: each layer's density by its score, exponentially. Score: logarithm of
  // its energy per element, mapped to [0, 1] between the least and the greatest layer. A tensor gets at most
  // c x weight x exp(kAptcSpread x score) bytes, c the same for all.
  kAptc = 1,
  // Rate-distortion: the steps between rungs on each tensor's convex hull, steepest first.
  kRd = 2,
};
inline constexpr double kAptcSpread = 1.5;

// One tensor as the planner sees it. Its drift is error / energy of an estimate; without energy it has none.
struct CompactCandidate {
  const CompactAnalysis* analysis = nullptr;  // with at least one estimate
  double weight = 1;                          // of its drift in the model's drift: its share of the elements
  uint32_t layer = 0;                         // kAptc: tensors of one layer have one score
};

struct CompactPlan {
  std::vector<uint32_t> picks;  // of each candidate: index into its analysis' estimates
  double bytes = 0, drift = 0;  // estimated, of all
};

// The plan of least drift with at most `budget_bytes`. A larger budget never gives a larger estimated drift.
// Errors: InvalidArgument when the budget is negative or not a number.
Result<CompactPlan> PlanForBytes(std::span<const CompactCandidate> candidates, CompactSchedule schedule,
                                 double budget_bytes);
// The plan of least bytes with at most `max_drift`. Errors: InvalidArgument when no plan reaches it (says the least).
Result<CompactPlan> PlanForDrift(std::span<const CompactCandidate> candidates, CompactSchedule schedule,
                                 double max_drift);

// The same from another plan on, of the kind kRd makes, for estimates that are better known by now: as few candidates
// as possible change. Takes the steps down that cost least until the plan has at most `budget_bytes`, then those up
// that pay most as long as they fit; or those up until it has at most `max_drift` (which may not be reached).
CompactPlan AdjustForBytes(std::span<const CompactCandidate> candidates, std::vector<uint32_t> picks,
                           double budget_bytes);
CompactPlan AdjustForDrift(std::span<const CompactCandidate> candidates, std::vector<uint32_t> picks, double max_drift);

}  // namespace modelstore
