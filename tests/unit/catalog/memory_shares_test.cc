#include "catalog/read/memory_shares.h"

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <thread>
#include <vector>

namespace modelstore {
namespace {

constexpr uint64_t kMin = MemoryShares::kMinShareBytes;

TEST(MemoryShares, EachTakesHalfOfWhatIsFree) {
  MemoryShares shares(8 * kMin);
  std::string phases;
  JobControl job([&](const JobProgress& progress) { phases += progress.phase; });
  std::vector<Result<MemoryShares::Share>> taken;
  for (const uint64_t expected : {4 * kMin, 2 * kMin, kMin, kMin}) {
    taken.push_back(shares.Take(job));
    ASSERT_TRUE(taken.back().ok());
    EXPECT_EQ(taken.back()->bytes(), expected);
  }
  EXPECT_EQ(phases, "");  // nobody waited
  taken.clear();
  const Result<MemoryShares::Share> again = shares.Take(job);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->bytes(), 4 * kMin);
}

TEST(MemoryShares, NeverGivesMoreThanThereIs) {
  MemoryShares shares(kMin + kMin / 2);
  JobControl job;
  const Result<MemoryShares::Share> only = shares.Take(job);
  ASSERT_TRUE(only.ok());
  EXPECT_EQ(only->bytes(), kMin);
  // The rest is too little to work with.
  job.Cancel();
  EXPECT_EQ(shares.Take(job).status().code(), StatusCode::kCancelled);
}

// A job on a thread of its own, known to be waiting once the constructor returns.
class Waiting {
 public:
  Waiting(MemoryShares& shares, std::vector<int>* order, int number)
      : job_([this](const JobProgress& progress) {
          EXPECT_EQ(progress.phase, "waiting for memory");
          waits_.set_value();
        }),
        thread_([this, &shares, order, number] {
          const Result<MemoryShares::Share> share = shares.Take(job_);
          status_ = share.status();
          if (share.ok()) order->push_back(number);  // one at a time: there is memory for one
        }) {
    waits_.get_future().wait();
  }
  ~Waiting() {
    if (thread_.joinable()) thread_.join();
  }
  void Cancel() { job_.Cancel(); }
  Status Join() {
    thread_.join();
    return status_;
  }

 private:
  std::promise<void> waits_;
  Status status_;
  JobControl job_;
  std::thread thread_;
};

TEST(MemoryShares, JobsWaitInOrderOfArrivalAndMayBeCancelled) {
  MemoryShares shares(kMin);
  JobControl job;
  std::vector<int> order;
  Result<MemoryShares::Share> first = shares.Take(job);
  ASSERT_TRUE(first.ok());
  Waiting second(shares, &order, 2), third(shares, &order, 3), fourth(shares, &order, 4);
  third.Cancel();
  EXPECT_EQ(third.Join().code(), StatusCode::kCancelled);
  EXPECT_TRUE(order.empty());
  *first = MemoryShares::Share();
  EXPECT_TRUE(second.Join().ok());
  EXPECT_TRUE(fourth.Join().ok());
  EXPECT_EQ(order, (std::vector<int>{2, 4}));
  EXPECT_TRUE(shares.Take(job).ok());
}

}  // namespace
}  // namespace modelstore
