#include "catalog/read/memory_shares.h"

#include <algorithm>
#include <chrono>

namespace modelstore {
namespace {

// How often a waiting job looks whether it was cancelled.
constexpr std::chrono::milliseconds kPollInterval{50};

}  // namespace

// Left when it ends, also by an exception: nobody waits behind a job that is gone.
class MemoryShares::Waiter {
 public:
  Waiter(MemoryShares& shares, const JobControl& job) : shares_(shares), job_(job) {
    const MutexLock lock(shares_.mutex_);
    shares_.waiting_.push_back(&job_);
  }
  ~Waiter() {
    const MutexLock lock(shares_.mutex_);
    std::erase(shares_.waiting_, &job_);
    shares_.changed_.NotifyAll();
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

 private:
  MemoryShares& shares_;
  const JobControl& job_;
};

bool MemoryShares::IsNext(const JobControl& job, uint64_t least_bytes) const {
  return waiting_.front() == &job && free_bytes_ >= least_bytes;
}

Result<MemoryShares::Share> MemoryShares::Take(JobControl& job, uint64_t need_bytes) {
  const uint64_t least = std::clamp(need_bytes, kMinShareBytes, std::max(budget_bytes_, kMinShareBytes));
  const Waiter waiter(*this, job);
  MutexLock lock(mutex_);
  if (!IsNext(job, least)) {
    lock.Unlock();
    job.Begin("waiting for memory", 0);
    lock.Lock();
  }
  while (!IsNext(job, least) && !job.cancelled())
    changed_.WaitUntil(mutex_, std::chrono::steady_clock::now() + kPollInterval);
  RETURN_IF_ERROR(job.Check());
  const uint64_t bytes = std::max(free_bytes_ / 2, least);
  free_bytes_ -= bytes;
  return Share(this, bytes);
}

void MemoryShares::GiveBack(uint64_t bytes) {
  const MutexLock lock(mutex_);
  free_bytes_ += bytes;
  changed_.NotifyAll();
}

}  // namespace modelstore
