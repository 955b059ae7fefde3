#include "daemon/service/limits.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace modelstore {
namespace {

TEST(GateTest, TheNextWaitsUntilAPlaceIsFree) {
  Gate gate(1);
  JobControl first;
  std::optional<Gate::Place> place;
  {
    Result<Gate::Place> entered = gate.Enter(first);
    ASSERT_TRUE(entered.ok());
    place = std::move(*entered);
  }
  std::string phase;
  JobControl second([&](const JobProgress& progress) {
    phase = progress.phase;
    place.reset();
  });
  EXPECT_TRUE(gate.Enter(second).ok());
  EXPECT_EQ(phase, "waiting");
}

TEST(GateTest, ACancelledJobStopsWaiting) {
  Gate gate(0);
  JobControl job;
  std::thread waiter([&] { EXPECT_EQ(gate.Enter(job).status().code(), StatusCode::kCancelled); });
  job.Cancel();
  gate.WakeAll();
  waiter.join();
}

TEST(DescriptorBudgetTest, SharesComeBack) {
  DescriptorBudget budget(100);
  EXPECT_EQ(budget.Take(51).status().code(), StatusCode::kResourceExhausted) << "more than half for one";
  {
    Result<DescriptorBudget::Share> a = budget.Take(50), b = budget.Take(40);
    EXPECT_TRUE(a.ok() && b.ok());
    const Status refused = budget.Take(11).status();
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(refused.message().find("LimitNOFILE"), std::string_view::npos);
    // A moved share is given back once.
    DescriptorBudget::Share moved = std::move(*a);
    EXPECT_TRUE(budget.Take(10).ok());
  }
  Result<DescriptorBudget::Share> a = budget.Take(50), b = budget.Take(50);
  EXPECT_TRUE(a.ok() && b.ok());
  EXPECT_FALSE(budget.Take(1).ok());
}

}  // namespace
}  // namespace modelstore
