// Who waits for whom at the gate between pushes and collections, and that waiting can be seen and stopped.
#include "catalog/read/collect_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>
#include <thread>
#include <vector>

namespace modelstore {
namespace {

using Milliseconds = CollectGate::Milliseconds;
constexpr Milliseconds kForever = std::chrono::hours(1);

// A job that remembers its phases.
struct Watched {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> phases;
  JobControl job{[this](const JobProgress& progress) {
    const std::lock_guard lock(mutex);
    phases.emplace_back(progress.phase);
    changed.notify_all();
  }};
  void WaitFor(const std::string& phase) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return std::find(phases.begin(), phases.end(), phase) != phases.end(); });
  }
};

TEST(CollectGate, SharersTogetherCollectorAlone) {
  CollectGate gate;
  JobControl job;
  Result<CollectGate::Hold> first = gate.Share(job);
  Result<CollectGate::Hold> second = gate.Share(job);
  ASSERT_TRUE(first.ok() && second.ok());
  JobControl cancelled;
  cancelled.Cancel();
  EXPECT_EQ(gate.EnterAlone(cancelled).status().code(), StatusCode::kCancelled);
  first->Release();
  EXPECT_EQ(gate.EnterAlone(cancelled).status().code(), StatusCode::kCancelled);
  *second = CollectGate::Hold();
  Result<CollectGate::Hold> alone = gate.EnterAlone(job);
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(gate.Share(cancelled).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(gate.EnterAlone(cancelled).status().code(), StatusCode::kCancelled);
  alone->Release();
  EXPECT_TRUE(gate.Share(cancelled).ok()) << "nobody is in the way, so nobody waits";
}

TEST(CollectGate, ACollectorTellsForWhomItWaitsAndCanBeStopped) {
  CollectGate gate;
  JobControl job;
  std::vector<CollectGate::Hold> holds;
  for (int i = 0; i < 2; ++i) {
    Result<CollectGate::Hold> hold = gate.Share(job);
    ASSERT_TRUE(hold.ok());
    holds.push_back(*std::move(hold));
  }
  Watched watched;
  std::future<StatusCode> collector =
      std::async(std::launch::async, [&] { return gate.EnterAlone(watched.job).status().code(); });
  watched.WaitFor("waiting for 2 running jobs");
  holds.pop_back();
  watched.WaitFor("waiting for 1 running job");
  watched.job.Cancel();
  EXPECT_EQ(collector.get(), StatusCode::kCancelled);
  EXPECT_TRUE(gate.Share(job).ok()) << "who gave up keeps nobody out";
}

// A push whose source lies on a file system that does not answer cannot end, however often it is cancelled.
TEST(CollectGate, WhoIsCancelledAndDoesNotEndIsNotWaitedFor) {
  CollectGate gate(Milliseconds(0), kForever, /*patience=*/Milliseconds(0));
  JobControl stuck, kept, job;
  Result<CollectGate::Hold> hanging = gate.Share(stuck);
  Result<CollectGate::Hold> publishing = gate.Share(kept);
  ASSERT_TRUE(hanging.ok() && publishing.ok());
  ASSERT_TRUE(publishing->Keep().ok());
  stuck.Cancel();
  kept.Cancel();
  EXPECT_EQ(hanging->Keep().code(), StatusCode::kCancelled);
  Watched watched;
  std::future<bool> collector = std::async(std::launch::async, [&] { return gate.EnterAlone(watched.job).ok(); });
  watched.WaitFor("waiting for 1 running job");
  publishing->Release();
  EXPECT_TRUE(collector.get()) << "the other one is still inside";
  hanging->Release();
  EXPECT_TRUE(gate.EnterAlone(job).ok());
}

TEST(CollectGate, WhoIsCancelledHasTimeToEnd) {
  CollectGate gate(Milliseconds(0), kForever, kForever);
  JobControl cancelled;
  Result<CollectGate::Hold> ending = gate.Share(cancelled);
  ASSERT_TRUE(ending.ok());
  cancelled.Cancel();
  Watched watched;
  std::future<bool> collector = std::async(std::launch::async, [&] { return gate.EnterAlone(watched.job).ok(); });
  watched.WaitFor("waiting for 1 running job");
  ending->Release();
  EXPECT_TRUE(collector.get());
}

TEST(CollectGate, NewcomersGetInWhileACollectorWaits) {
  CollectGate gate(Milliseconds(20), kForever);
  JobControl job;
  Result<CollectGate::Hold> endless = gate.Share(job);
  ASSERT_TRUE(endless.ok());
  Watched watched;
  std::future<bool> collector = std::async(std::launch::async, [&] { return gate.EnterAlone(watched.job).ok(); });
  watched.WaitFor("waiting for 1 running job");
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(gate.Share(job).ok());
  endless->Release();
  EXPECT_TRUE(collector.get());
}

TEST(CollectGate, ACollectorGetsInBetweenShortJobs) {
  CollectGate gate(kForever, Milliseconds(0));
  JobControl job;
  Result<CollectGate::Hold> first = gate.Share(job);
  ASSERT_TRUE(first.ok());
  Watched collecting, sharing;
  std::atomic<bool> collected{false};
  std::future<bool> collector = std::async(std::launch::async, [&] {
    const Result<CollectGate::Hold> alone = gate.EnterAlone(collecting.job);
    collected = true;
    return alone.ok();
  });
  collecting.WaitFor("waiting for 1 running job");
  std::future<bool> newcomer = std::async(std::launch::async, [&] {
    const Result<CollectGate::Hold> hold = gate.Share(sharing.job);
    return hold.ok() && collected;
  });
  sharing.WaitFor("waiting for a removal or prune");
  first->Release();
  EXPECT_TRUE(collector.get());
  EXPECT_TRUE(newcomer.get());
}

}  // namespace
}  // namespace modelstore
