#include "catalog/write/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <vector>

namespace modelstore {
namespace {

TEST(Lanes, WhatATaskThrowsIsAStatus) {
  WorkerPool pool(3);
  Lanes lanes(pool, 2);
  for (const size_t n : {size_t{1}, size_t{20}}) {
    const auto run = [&](const std::function<Status(size_t)>& task) { return lanes.Run(n, task); };
    EXPECT_EQ(run([](size_t) -> Status { throw std::bad_alloc(); }).code(), StatusCode::kResourceExhausted);
    const Status thrown = run([](size_t) -> Status { throw std::length_error("too long"); });
    EXPECT_EQ(thrown.code(), StatusCode::kInternal);
    EXPECT_NE(thrown.message().find("too long"), std::string_view::npos);
    EXPECT_EQ(run([](size_t) -> Status { throw 7; }).code(), StatusCode::kInternal);
    EXPECT_TRUE(run([](size_t) { return OkStatus(); }).ok());
  }
}

TEST(Lanes, RunEveryTaskOnceAndStopAfterAFailure) {
  WorkerPool pool(4);
  for (const unsigned count : {1u, 2u, 5u}) {
    Lanes lanes(pool, count);
    std::vector<std::atomic<int>> ran(1000);
    EXPECT_TRUE(lanes
                    .Run(ran.size(),
                         [&](size_t i) {
                           ++ran[i];
                           return OkStatus();
                         })
                    .ok());
    for (const std::atomic<int>& times : ran) EXPECT_EQ(times.load(), 1);
    std::atomic<size_t> started{0};
    const Status status = lanes.Run(1000, [&](size_t i) {
      ++started;
      return i == 3 ? IoError("task 3") : OkStatus();
    });
    EXPECT_EQ(status.message(), "task 3");
    EXPECT_GE(started.load(), 4u);
    EXPECT_TRUE(lanes.Run(0, [](size_t) { return IoError("never"); }).ok());
  }
}

TEST(Lanes, BoundThreadsOverNestedLoops) {
  WorkerPool pool(8);
  for (const unsigned count : {1u, 3u}) {
    Lanes lanes(pool, count);
    std::atomic<int> working{0}, most{0}, sum{0};
    const auto inner = [&](size_t) {
      const int now = ++working;
      for (int seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      ++sum;
      --working;
      return OkStatus();
    };
    EXPECT_TRUE(lanes.Run(200, [&](size_t) { return lanes.Run(50, inner); }).ok());
    EXPECT_EQ(sum.load(), 200 * 50);
    EXPECT_LE(most.load(), static_cast<int>(count));
  }
}

}  // namespace
}  // namespace modelstore
