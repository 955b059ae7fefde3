// Which choice each tensor of a compact model gets (layer: codec/encode). Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/encode/compact_encoder.h"
#include "codec/support/status.h"

namespace modelstore {

enum class CompactSchedule : uint8_t {
  kUniform = 0,  // the same choice for every tensor
  kAptc = 1,     // Aggressive Post-Training Compression: each layer's sparsity by its score, exponentially
  kRd = 2,       // rate-distortion: one lambda for all tensors
};

// One tensor as the planner sees it.
struct CompactCandidate {
  const CompactAnalysis* analysis = nullptr;
  double weight = 1;   // of its drift in the model's drift: its share of the elements
  uint32_t layer = 0;  // kAptc: its position in the model
};

struct CompactPlan {
  std::vector<uint32_t> picks;  // of each candidate: index into its analysis' estimates
  double bytes = 0, drift = 0;  // estimated, of all
};

// The plan of least drift with at most `budget_bytes`. A larger budget never gives a larger estimated drift.
// Errors: InvalidArgument when even nothing at all exceeds the budget.
Result<CompactPlan> PlanForBytes(std::span<const CompactCandidate> candidates, CompactSchedule schedule,
                                 double budget_bytes);
// The plan of least bytes with at most `max_drift`. Errors: InvalidArgument when no plan reaches it (says the least).
Result<CompactPlan> PlanForDrift(std::span<const CompactCandidate> candidates, CompactSchedule schedule,
                                 double max_drift);

}  // namespace modelstore
