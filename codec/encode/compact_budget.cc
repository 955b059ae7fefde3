#include "codec/encode/compact_budget.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>

namespace modelstore {
namespace {

using Candidates = std::span<const CompactCandidate>;

double Drift(const CompactCandidate& candidate, const CompactEstimate& estimate) {
  const double energy = candidate.analysis->energy;
  return energy > 0 ? candidate.weight * estimate.error / energy : 0;
}

// A candidate's move from its current pick to `pick`.
struct Step {
  uint32_t candidate = 0, pick = 0;
  double bytes = 0, drift = 0;  // what it adds and what it saves
  double order = 0;             // ascending
};

// Estimates of a candidate that cost more and leave less than those before, from the cheapest on; of these, the lower
// convex hull where `hull`.
std::vector<uint32_t> Frontier(const CompactCandidate& candidate, bool hull) {
  const auto& estimates = candidate.analysis->estimates;
  std::vector<uint32_t> order(estimates.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return estimates[a].bytes != estimates[b].bytes ? estimates[a].bytes < estimates[b].bytes
                                                    : estimates[a].error < estimates[b].error;
  });
  std::vector<uint32_t> kept;
  for (const uint32_t i : order) {
    if (!kept.empty() && !(estimates[i].error < estimates[kept.back()].error)) continue;
    while (hull && kept.size() >= 2) {
      const CompactEstimate &a = estimates[kept[kept.size() - 2]], &b = estimates[kept.back()], &c = estimates[i];
      if ((a.error - b.error) * (c.bytes - b.bytes) > (b.error - c.error) * (b.bytes - a.bytes)) break;
      kept.pop_back();
    }
    kept.push_back(i);
    if (!(candidate.analysis->energy > 0)) break;
  }
  return kept;
}

// Logarithm of a layer's energy per element, mapped to [0, 1].
std::vector<double> Scores(Candidates candidates) {
  std::map<uint32_t, std::pair<double, double>> layers;
  for (const CompactCandidate& c : candidates) {
    layers[c.layer].first += c.analysis->energy;
    layers[c.layer].second += c.weight;
  }
  std::map<uint32_t, double> score;
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (const auto& [layer, sums] : layers) {
    if (!(sums.first > 0) || !(sums.second > 0)) continue;
    const double s = score[layer] = std::log(sums.first / sums.second);
    least = std::min(least, s);
    most = std::max(most, s);
  }
  std::vector<double> scores;
  for (const CompactCandidate& c : candidates) {
    const auto found = score.find(c.layer);
    scores.push_back(found != score.end() && most > least ? (found->second - least) / (most - least) : 0);
  }
  return scores;
}

class Planner {
 public:
  Planner(Candidates candidates, CompactSchedule schedule) : candidates_(candidates) {
    if (schedule == CompactSchedule::kUniform) {
      MakeUniform();
    } else {
      MakeSteps(schedule);
    }
  }

  CompactPlan ForBytes(double budget) const {
    if (!uniform_.empty()) {
      const CompactPlan* best = &uniform_[0];
      for (const CompactPlan& plan : uniform_) {
        if (plan.bytes <= budget && (best->bytes > budget || plan.drift < best->drift)) best = &plan;
      }
      return *best;
    }
    CompactPlan plan = start_;
    std::vector<uint8_t> stopped(candidates_.size());
    for (const Step& step : steps_) {
      if (stopped[step.candidate]) continue;
      if (plan.bytes + step.bytes <= budget) {
        Apply(step, plan);
      } else if (fill_) {
        // What comes later is less steep, so all that fits instead of this step saves less than it: filling up keeps
        // the promise that a larger budget never gives a larger drift.
        stopped[step.candidate] = 1;
      } else {
        break;
      }
    }
    return plan;
  }

  CompactPlan ForDrift(double most) const {
    if (!uniform_.empty()) {
      const CompactPlan* best = &uniform_[0];
      for (const CompactPlan& plan : uniform_) {
        const bool reaches = plan.drift <= most, had = best->drift <= most;
        if (reaches != had ? reaches : (reaches ? plan.bytes < best->bytes : plan.drift < best->drift)) best = &plan;
      }
      return *best;
    }
    CompactPlan plan = start_;
    size_t taken = 0;
    while (plan.drift > most && taken < steps_.size()) Apply(steps_[taken++], plan);
    if (!fill_) return plan;
    // Steps that the last one made superfluous.
    std::vector<uint8_t> fixed(candidates_.size());
    for (size_t s = taken; s-- > 0;) {
      const Step& step = steps_[s];
      if (fixed[step.candidate] || plan.drift + step.drift > most) {
        fixed[step.candidate] = 1;
        continue;
      }
      plan.picks[step.candidate] = from_[s];
      plan.bytes -= step.bytes;
      plan.drift += step.drift;
    }
    return plan;
  }

 private:
  void Add(CompactPlan& plan, size_t candidate, uint32_t pick) const {
    const CompactEstimate& estimate = candidates_[candidate].analysis->estimates[pick];
    plan.picks.push_back(pick);
    plan.bytes += estimate.bytes;
    plan.drift += Drift(candidates_[candidate], estimate);
  }
  static void Apply(const Step& step, CompactPlan& plan) {
    plan.picks[step.candidate] = step.pick;
    plan.bytes += step.bytes;
    plan.drift -= step.drift;
  }

  void MakeUniform() {
    size_t rungs = 1;
    for (const CompactCandidate& c : candidates_) rungs = std::max(rungs, c.analysis->estimates.size());
    for (size_t rung = 0; rung < rungs; ++rung) {
      CompactPlan& plan = uniform_.emplace_back();
      for (size_t c = 0; c < candidates_.size(); ++c) {
        const size_t last = candidates_[c].analysis->energy > 0 ? candidates_[c].analysis->estimates.size() - 1 : 0;
        Add(plan, c, static_cast<uint32_t>(std::min(rung, last)));
      }
    }
  }

  void MakeSteps(CompactSchedule schedule) {
    fill_ = schedule == CompactSchedule::kRd;
    const std::vector<double> scores = fill_ ? std::vector<double>() : Scores(candidates_);
    std::vector<std::pair<Step, uint32_t>> steps;
    for (size_t c = 0; c < candidates_.size(); ++c) {
      const CompactCandidate& candidate = candidates_[c];
      const auto& estimates = candidate.analysis->estimates;
      const std::vector<uint32_t> frontier = Frontier(candidate, fill_);
      Add(start_, c, frontier[0]);
      for (size_t f = 1; f < frontier.size(); ++f) {
        Step step{static_cast<uint32_t>(c), frontier[f]};
        const CompactEstimate &from = estimates[frontier[f - 1]], &to = estimates[frontier[f]];
        step.bytes = to.bytes - from.bytes;
        step.drift = Drift(candidate, from) - Drift(candidate, to);
        step.order = fill_ ? -step.drift / std::max(step.bytes, std::numeric_limits<double>::min())
                           : to.bytes / (std::max(candidate.weight, std::numeric_limits<double>::min()) *
                                         std::exp(kAptcSpread * scores[c]));
        steps.emplace_back(step, frontier[f - 1]);
      }
    }
    std::stable_sort(steps.begin(), steps.end(),
                     [](const auto& a, const auto& b) { return a.first.order < b.first.order; });
    for (const auto& [step, from] : steps) {
      steps_.push_back(step);
      from_.push_back(from);
    }
  }

  Candidates candidates_;
  bool fill_ = false;
  std::vector<CompactPlan> uniform_;  // of each rung
  CompactPlan start_;
  std::vector<Step> steps_;     // in the order in which they are taken; those of a candidate in its frontier's
  std::vector<uint32_t> from_;  // the pick before each
};

// A plan that is changed step by step along the frontiers of its candidates.
class Adjuster {
 public:
  Adjuster(Candidates candidates, std::vector<uint32_t> picks) : candidates_(candidates) {
    plan_.picks = std::move(picks);
    for (size_t c = 0; c < candidates_.size(); ++c) {
      frontiers_.push_back(Frontier(candidates_[c], true));
      plan_.bytes += At(c, plan_.picks[c]).bytes;
      plan_.drift += Drift(candidates_[c], At(c, plan_.picks[c]));
    }
  }
  CompactPlan& plan() { return plan_; }

  // The step up that saves most drift a byte, of at most `most_bytes`; down: that which saves bytes for the least
  // drift.
  std::optional<Step> Best(bool up, double most_bytes) const {
    std::optional<Step> best;
    for (size_t c = 0; c < candidates_.size(); ++c) {
      const CompactEstimate& from = At(c, plan_.picks[c]);
      for (const uint32_t pick : frontiers_[c]) {
        const CompactEstimate& to = At(c, pick);
        Step step{static_cast<uint32_t>(c), pick, to.bytes - from.bytes,
                  Drift(candidates_[c], from) - Drift(candidates_[c], to)};
        const bool useful = up ? step.drift > 0 && step.bytes <= most_bytes : step.bytes < 0;
        if (!useful || pick == plan_.picks[c]) continue;
        // Better without more bytes, or fewer bytes without more drift: first of all.
        step.order = up ? (step.bytes <= 0 ? -kInfinity : -step.drift / step.bytes)
                        : (step.drift >= 0 ? -kInfinity : step.drift / step.bytes);
        if (!best || step.order < best->order) best = step;
      }
    }
    return best;
  }
  void Take(const Step& step) {
    plan_.picks[step.candidate] = step.pick;
    plan_.bytes += step.bytes;
    plan_.drift -= step.drift;
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const CompactEstimate& At(size_t candidate, uint32_t pick) const {
    return candidates_[candidate].analysis->estimates[pick];
  }
  const Candidates candidates_;
  std::vector<std::vector<uint32_t>> frontiers_;
  CompactPlan plan_;
};

}  // namespace

Result<CompactPlan> PlanForBytes(Candidates candidates, CompactSchedule schedule, double budget_bytes) {
  if (!(budget_bytes >= 0)) return InvalidArgument("a budget of " + std::to_string(budget_bytes) + " bytes");
  return Planner(candidates, schedule).ForBytes(budget_bytes);
}

Result<CompactPlan> PlanForDrift(Candidates candidates, CompactSchedule schedule, double max_drift) {
  if (!(max_drift >= 0)) return InvalidArgument("a drift of at most " + std::to_string(max_drift));
  CompactPlan plan = Planner(candidates, schedule).ForDrift(max_drift);
  // Sums in different order differ by rounding.
  if (plan.drift > max_drift + 1e-12) {
    return InvalidArgument("a drift of at most " + std::to_string(max_drift) + " is not reached: the least is " +
                           std::to_string(plan.drift));
  }
  return plan;
}

CompactPlan AdjustForBytes(Candidates candidates, std::vector<uint32_t> picks, double budget_bytes) {
  Adjuster adjuster(candidates, std::move(picks));
  while (adjuster.plan().bytes > budget_bytes) {
    const std::optional<Step> step = adjuster.Best(/*up=*/false, 0);
    if (!step) break;
    adjuster.Take(*step);
  }
  while (const std::optional<Step> step = adjuster.Best(/*up=*/true, budget_bytes - adjuster.plan().bytes))
    adjuster.Take(*step);
  return std::move(adjuster.plan());
}

CompactPlan AdjustForDrift(Candidates candidates, std::vector<uint32_t> picks, double max_drift) {
  Adjuster adjuster(candidates, std::move(picks));
  while (adjuster.plan().drift > max_drift) {
    const std::optional<Step> step = adjuster.Best(/*up=*/true, std::numeric_limits<double>::infinity());
    if (!step) break;
    adjuster.Take(*step);
  }
  return std::move(adjuster.plan());
}

}  // namespace modelstore
