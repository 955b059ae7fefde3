// The planner's promises: within the budget, never worse for more, and no worse than the plainer schedules.
#include "codec/encode/compact_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace modelstore {
namespace {

constexpr CompactSchedule kSchedules[] = {CompactSchedule::kUniform, CompactSchedule::kAptc, CompactSchedule::kRd};

struct Model {
  std::vector<CompactAnalysis> analyses;
  std::vector<CompactCandidate> candidates;
};

// Tensors of different size and compressibility; some rungs cost more and leave more than others.
Model MakeModel(size_t tensors, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  Model m;
  m.analyses.resize(tensors);
  for (size_t t = 0; t < tensors; ++t) {
    CompactAnalysis& a = m.analyses[t];
    a.energy = std::exp(6 * uniform(random));
    a.estimates.push_back({CompactChoice{}, 0, a.energy});
    const double size = 1000 * (1 + 20 * uniform(random)), fall = 0.3 + uniform(random);
    for (uint32_t r = 1; r <= 8; ++r) {
      CompactEstimate e;
      e.choice.rank = r;
      e.bytes = size * r * (0.8 + 0.4 * uniform(random));
      e.error = a.energy * std::exp(-fall * r * (0.8 + 0.4 * uniform(random)));
      a.estimates.push_back(e);
    }
  }
  for (size_t t = 0; t < tensors; ++t) {
    m.candidates.push_back(
        {&m.analyses[t], (1 + uniform(random)) / (1.5 * static_cast<double>(tensors)), static_cast<uint32_t>(t / 3)});
  }
  return m;
}

void ExpectConsistent(const Model& m, const CompactPlan& plan) {
  ASSERT_EQ(plan.picks.size(), m.candidates.size());
  double bytes = 0, drift = 0;
  for (size_t t = 0; t < plan.picks.size(); ++t) {
    ASSERT_LT(plan.picks[t], m.analyses[t].estimates.size());
    const CompactEstimate& e = m.analyses[t].estimates[plan.picks[t]];
    bytes += e.bytes;
    if (m.analyses[t].energy > 0) drift += m.candidates[t].weight * e.error / m.analyses[t].energy;
  }
  EXPECT_NEAR(plan.bytes, bytes, 1e-6 * bytes + 1e-9);
  EXPECT_NEAR(plan.drift, drift, 1e-9);
}

TEST(CompactBudget, StaysWithinBytesAndNeverGetsWorseForMore) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    const Model m = MakeModel(12, seed);
    for (const CompactSchedule schedule : kSchedules) {
      double before = std::numeric_limits<double>::infinity();
      for (double budget = 0; budget < 2e6; budget = budget * 1.07 + 500) {
        const auto plan = PlanForBytes(m.candidates, schedule, budget);
        ASSERT_TRUE(plan.ok());
        ExpectConsistent(m, *plan);
        EXPECT_LE(plan->bytes, budget * (1 + 1e-12));
        EXPECT_LE(plan->drift, before + 1e-12) << static_cast<int>(schedule) << " at " << budget;
        before = plan->drift;
      }
    }
  }
}

TEST(CompactBudget, ReachesADriftOrSaysTheLeast) {
  const Model m = MakeModel(15, 7);
  for (const CompactSchedule schedule : kSchedules) {
    const auto all = PlanForBytes(m.candidates, schedule, 1e18);
    ASSERT_TRUE(all.ok());
    double before = std::numeric_limits<double>::infinity();
    for (const double most : {0.01, 0.02, 0.05, 0.1, 0.3, 0.7, 2.0}) {
      const auto plan = PlanForDrift(m.candidates, schedule, most);
      if (all->drift > most) {
        EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(plan.status().message()), testing::HasSubstr("the least is"));
        continue;
      }
      ASSERT_TRUE(plan.ok()) << plan.status().ToString();
      ExpectConsistent(m, *plan);
      EXPECT_LE(plan->drift, most + 1e-12);
      EXPECT_LE(plan->bytes, before);
      before = plan->bytes;
    }
    const auto none = PlanForDrift(m.candidates, schedule, 10);
    ASSERT_TRUE(none.ok());
    EXPECT_EQ(none->bytes, 0);
    EXPECT_FALSE(PlanForDrift(m.candidates, schedule, 0).ok());
  }
}

TEST(CompactBudget, RateDistortionIsNoWorseThanPlainerSchedules) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    const Model m = MakeModel(60, seed);
    for (const double budget : {1e4, 1e5, 5e5, 2e6}) {
      const auto rd = PlanForBytes(m.candidates, CompactSchedule::kRd, budget);
      for (const CompactSchedule schedule : {CompactSchedule::kUniform, CompactSchedule::kAptc}) {
        const auto other = PlanForBytes(m.candidates, schedule, budget);
        ASSERT_TRUE(rd.ok() && other.ok());
        // The hull's steps are whole: at most one of them is lost.
        EXPECT_LE(rd->drift, other->drift + 0.02) << seed << " " << budget;
      }
    }
  }
}

// Estimates turn out wrong: the plan is made to fit again, with few changes and nearly as well as a new one.
TEST(CompactBudget, AdjustsAPlanToWhatIsKnownByNow) {
  size_t changed = 0, planned_anew = 0;
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    Model m = MakeModel(60, seed);
    const double budget = 3e5 * (1 + seed % 5);
    const CompactPlan first = *PlanForBytes(m.candidates, CompactSchedule::kRd, budget);
    std::mt19937 random(seed + 100);
    std::uniform_real_distribution<double> uniform(0.9, seed % 2 == 0 ? 1.2 : 1.05);
    for (CompactAnalysis& a : m.analyses) {
      for (size_t e = 1; e < a.estimates.size(); ++e) a.estimates[e].bytes *= uniform(random);
    }
    const CompactPlan adjusted = AdjustForBytes(m.candidates, first.picks, budget);
    ExpectConsistent(m, adjusted);
    EXPECT_LE(adjusted.bytes, budget);
    const CompactPlan anew = *PlanForBytes(m.candidates, CompactSchedule::kRd, budget);
    EXPECT_LE(adjusted.drift, anew.drift * 1.1 + 0.002);
    for (size_t t = 0; t < first.picks.size(); ++t) {
      changed += adjusted.picks[t] != first.picks[t];
      planned_anew += anew.picks[t] != first.picks[t];
    }
    const double limit = anew.drift * 0.7;
    const CompactPlan nearer = AdjustForDrift(m.candidates, anew.picks, limit);
    ExpectConsistent(m, nearer);
    EXPECT_LE(nearer.drift, limit);
    EXPECT_LE(nearer.bytes, PlanForDrift(m.candidates, CompactSchedule::kRd, limit)->bytes * 1.1 + 2e4);
    double least = 0;
    for (const CompactCandidate& c : m.candidates) {
      double error = c.analysis->energy;
      for (const CompactEstimate& e : c.analysis->estimates) error = std::min(error, e.error);
      least += c.weight * error / c.analysis->energy;
    }
    EXPECT_NEAR(AdjustForDrift(m.candidates, anew.picks, -1).drift, least, 1e-9) << "as near as it gets";
    EXPECT_NEAR(AdjustForBytes(m.candidates, anew.picks, 0).bytes, 0, 1e-6);
  }
  EXPECT_LT(changed, planned_anew);
}

TEST(CompactBudget, AptcGivesLayersOfHighScoreMore) {
  Model m = MakeModel(6, 3);
  for (size_t t = 0; t < 6; ++t) {
    m.analyses[t] = m.analyses[0];
    const double factor = t < 3 ? 1 : 100;
    m.analyses[t].energy *= factor;
    for (CompactEstimate& e : m.analyses[t].estimates) e.error *= factor;
    m.candidates[t].weight = 1.0 / 6;
  }
  const auto plan = PlanForBytes(m.candidates, CompactSchedule::kAptc, 3.5 * m.analyses[0].estimates[8].bytes);
  ASSERT_TRUE(plan.ok());
  const auto bytes = [&](size_t t) { return m.analyses[t].estimates[plan->picks[t]].bytes; };
  EXPECT_LT(bytes(0), bytes(3));
}

TEST(CompactBudget, TensorsWithoutADeltaCostNothingAndBadBudgetsAreRefused) {
  Model m = MakeModel(3, 5);
  m.analyses[1].energy = 0;
  for (CompactEstimate& e : m.analyses[1].estimates) e.error = 0;
  for (const CompactSchedule schedule : kSchedules) {
    const auto plan = PlanForBytes(m.candidates, schedule, 1e9);
    ASSERT_TRUE(plan.ok());
    EXPECT_EQ(plan->picks[1], 0u);
    for (const double bad : {-1.0, std::nan("")}) {
      EXPECT_EQ(PlanForBytes(m.candidates, schedule, bad).status().code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(PlanForDrift(m.candidates, schedule, bad).status().code(), StatusCode::kInvalidArgument);
    }
    const auto empty = PlanForBytes({}, schedule, 10);
    ASSERT_TRUE(empty.ok());
    EXPECT_TRUE(empty->picks.empty());
  }
}

}  // namespace
}  // namespace modelstore
