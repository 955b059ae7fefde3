#include "daemon/service/limits.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace modelstore {
namespace {

constexpr Account kAdministrator = std::nullopt;

TEST(GateTest, TheNextWaitsUntilAPlaceIsFree) {
  Gate gate(1);
  JobControl first;
  std::optional<Gate::Place> place;
  {
    Result<Gate::Place> entered = gate.Enter(first, kAdministrator);
    ASSERT_TRUE(entered.ok());
    place = std::move(*entered);
  }
  std::string phase;
  JobControl second([&](const JobProgress& progress) {
    phase = progress.phase;
    place.reset();
  });
  EXPECT_TRUE(gate.Enter(second, kAdministrator).ok());
  EXPECT_EQ(phase, "waiting");
}

TEST(GateTest, ACancelledJobStopsWaiting) {
  Gate gate(0);
  JobControl job;
  std::thread waiter([&] { EXPECT_EQ(gate.Enter(job, kAdministrator).status().code(), StatusCode::kCancelled); });
  job.Cancel();
  gate.WakeAll();
  waiter.join();
}

TEST(GateTest, OneUserGetsHalfOfThePlaces) {
  Gate gate(4);
  JobControl job;
  Result<Gate::Place> a = gate.Enter(job, 1), b = gate.Enter(job, 1), other = gate.Enter(job, 2);
  std::string phase;
  JobControl third([&](const JobProgress& progress) {
    phase = progress.phase;
    const Gate::Place given_back = *std::move(a);
  });
  EXPECT_TRUE(gate.Enter(third, 1).ok());
  EXPECT_EQ(phase, "waiting");
  // An administrator may take the last one.
  EXPECT_TRUE(gate.Enter(job, kAdministrator).ok());
}

TEST(DescriptorBudgetTest, APushOfManyFilesGetsHalfAtMost) {
  DescriptorBudget budget(100);
  EXPECT_EQ(budget.Take(30, 1)->count(), 30u);
  EXPECT_EQ(budget.Take(163, 1)->count(), 50u);
  EXPECT_EQ(budget.Take(163, kAdministrator)->count(), 50u);
  EXPECT_EQ(budget.Take(0, 1)->count(), 0u);
}

TEST(DescriptorBudgetTest, OneUserGetsHalfInSum) {
  DescriptorBudget budget(100);
  {
    const Result<DescriptorBudget::Share> a = budget.Take(30, 1), other = budget.Take(30, 2);
    EXPECT_TRUE(a.ok() && other.ok());
    EXPECT_EQ(budget.Take(40, 1)->count(), 20u);
    const Result<DescriptorBudget::Share> more = budget.Take(20, 1);
    const Status refused = budget.Take(1, 1).status();
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(refused.message().find("of user 1"), std::string_view::npos) << refused.message();
    EXPECT_EQ(budget.Take(20, kAdministrator)->count(), 20u);
  }
  EXPECT_EQ(budget.Take(50, 1)->count(), 50u);
}

TEST(DescriptorBudgetTest, SharesComeBack) {
  DescriptorBudget budget(100);
  {
    Result<DescriptorBudget::Share> a = budget.Take(50, kAdministrator), b = budget.Take(45, kAdministrator);
    EXPECT_TRUE(a.ok() && b.ok());
    const Status refused = budget.Take(11, kAdministrator).status();
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(refused.message().find("LimitNOFILE"), std::string_view::npos);
    EXPECT_EQ(budget.Take(5, kAdministrator)->count(), 5u);
    // A moved share is given back once.
    DescriptorBudget::Share moved = std::move(*a);
    EXPECT_EQ(budget.Take(5, kAdministrator)->count(), 5u);
  }
  Result<DescriptorBudget::Share> a = budget.Take(50, kAdministrator), b = budget.Take(50, kAdministrator);
  EXPECT_EQ(a->count() + b->count(), 100u);
  EXPECT_FALSE(budget.Take(1, kAdministrator).ok());
}

}  // namespace
}  // namespace modelstore
