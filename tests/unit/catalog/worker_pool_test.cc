#include "catalog/read/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <latch>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace modelstore {
namespace {

// A task that does not fail.
template <typename Body>
std::function<Status(size_t)> Each(const Body& body) {
  return [&body](size_t i) {
    body(i);
    return OkStatus();
  };
}

TEST(WorkerPool, RunsEveryIndexOnce) {
  WorkerPool pool(4);
  for (const size_t n : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> runs(n);
    EXPECT_TRUE(pool.ParallelFor(n, Each([&](size_t i) { ++runs[i]; })).ok());
    for (const auto& r : runs) EXPECT_EQ(r, 1);
  }
}

TEST(WorkerPool, UsesTheCallerAndTheWorkers) {
  WorkerPool pool(4);
  EXPECT_EQ(pool.threads(), 4u);
  // Returns only when four threads are inside at once.
  std::latch all(4);
  EXPECT_TRUE(pool.ParallelFor(4, Each([&](size_t) { all.arrive_and_wait(); })).ok());
}

TEST(WorkerPool, LoopsNestAndComeFromManyThreads) {
  WorkerPool pool(3);
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([&] {
      (void)pool.ParallelFor(10, [&](size_t) { return pool.ParallelFor(10, Each([&](size_t) { ++sum; })); });
    });
  }
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(sum, 800);
}

TEST(WorkerPool, OneThreadRunsLoopsOnTheCaller) {
  WorkerPool pool(1);
  const auto me = std::this_thread::get_id();
  EXPECT_TRUE(pool.ParallelFor(5, Each([&](size_t) { EXPECT_EQ(std::this_thread::get_id(), me); })).ok());
}

TEST(WorkerPool, WhatATaskThrowsIsItsFailure) {
  for (const unsigned threads : {1u, 3u}) {
    WorkerPool pool(threads);
    for (const size_t n : {size_t{1}, size_t{20}}) {
      const auto run = [&](const std::function<Status(size_t)>& task) { return pool.ParallelFor(n, task); };
      EXPECT_EQ(run([](size_t) -> Status { throw std::bad_alloc(); }).code(), StatusCode::kResourceExhausted);
      const Status thrown = run([](size_t) -> Status { throw std::length_error("too long"); });
      EXPECT_EQ(thrown.code(), StatusCode::kInternal);
      EXPECT_NE(thrown.message().find("too long"), std::string_view::npos);
      EXPECT_EQ(run([](size_t) -> Status { throw 7; }).code(), StatusCode::kInternal);
      EXPECT_EQ(run([](size_t) { return IoError("it"); }).message(), "it");
      EXPECT_TRUE(run([](size_t) { return OkStatus(); }).ok());
    }
    std::latch done(1);
    ASSERT_TRUE(pool.Submit([] { throw std::bad_alloc(); }));
    ASSERT_TRUE(pool.Submit([&] { done.count_down(); })) << "the worker goes on";
    done.wait();
  }
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
  EXPECT_TRUE(pool.ParallelFor(100, Each([&](size_t) { ++runs; })).ok());
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
