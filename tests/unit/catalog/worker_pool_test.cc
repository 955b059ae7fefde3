#include "catalog/read/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <thread>
#include <vector>

namespace modelstore {
namespace {

TEST(WorkerPool, RunsEveryIndexOnce) {
  WorkerPool pool(4);
  for (const size_t n : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> runs(n);
    pool.ParallelFor(n, [&](size_t i) { ++runs[i]; });
    for (const auto& r : runs) EXPECT_EQ(r, 1);
  }
}

TEST(WorkerPool, UsesTheCallerAndTheWorkers) {
  WorkerPool pool(4);
  EXPECT_EQ(pool.threads(), 4u);
  // Returns only when four threads are inside at once.
  std::latch all(4);
  pool.ParallelFor(4, [&](size_t) { all.arrive_and_wait(); });
}

TEST(WorkerPool, LoopsNestAndComeFromManyThreads) {
  WorkerPool pool(3);
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([&] { pool.ParallelFor(10, [&](size_t) { pool.ParallelFor(10, [&](size_t) { ++sum; }); }); });
  }
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(sum, 800);
}

TEST(WorkerPool, OneThreadRunsLoopsOnTheCaller) {
  WorkerPool pool(1);
  const auto me = std::this_thread::get_id();
  pool.ParallelFor(5, [&](size_t) { EXPECT_EQ(std::this_thread::get_id(), me); });
}

TEST(WorkerPool, LoopsGoOnWhileWorkersAreBusy) {
  WorkerPool pool(2);
  std::latch busy(2), release(1);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(pool.Submit([&] {
      busy.count_down();
      release.wait();
    }));
  }
  busy.wait();
  std::atomic<int> runs{0};
  pool.ParallelFor(100, [&](size_t) { ++runs; });
  EXPECT_EQ(runs, 100);
  release.count_down();
}

TEST(WorkerPool, RefusesMoreThanMaxQueued) {
  WorkerPool pool(1);
  std::latch busy(1), release(1);
  ASSERT_TRUE(pool.Submit([&] {
    busy.count_down();
    release.wait();
  }));
  busy.wait();
  std::atomic<int> runs{0};
  EXPECT_TRUE(pool.Submit([&] { ++runs; }, 2));
  EXPECT_TRUE(pool.Submit([&] { ++runs; }, 2));
  EXPECT_FALSE(pool.Submit([&] { runs += 100; }, 2));
  release.count_down();
  std::latch done(1);
  ASSERT_TRUE(pool.Submit([&] { done.count_down(); }));
  done.wait();
  EXPECT_EQ(runs, 2);
}

TEST(WorkerPool, FinishesSubmittedWorkBeforeItGoes) {
  std::atomic<int> runs{0};
  {
    WorkerPool pool(2);
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(pool.Submit([&] { ++runs; }));
  }
  EXPECT_EQ(runs, 100);
}

}  // namespace
}  // namespace modelstore
