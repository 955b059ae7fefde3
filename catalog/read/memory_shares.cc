#include "catalog/read/memory_shares.h"

#include <algorithm>
#include <chrono>

namespace modelstore {
namespace {

// How often a waiting job looks whether it was cancelled.
constexpr std::chrono::milliseconds kPollInterval{50};

}  // namespace

Result<MemoryShares::Share> MemoryShares::Take(JobControl& job, uint64_t need_bytes) {
  const uint64_t least = std::clamp(need_bytes, kMinShareBytes, std::max(budget_bytes_, kMinShareBytes));
  std::unique_lock lock(mutex_);
  waiting_.push_back(&job);
  const auto is_next = [&] { return waiting_.front() == &job && free_bytes_ >= least; };
  if (!is_next()) {
    lock.unlock();
    job.Begin("waiting for memory", 0);
    lock.lock();
  }
  while (!is_next() && !job.cancelled()) changed_.wait_for(lock, kPollInterval);
  const bool taken = !job.cancelled();
  std::erase(waiting_, &job);
  const uint64_t bytes = taken ? std::max(free_bytes_ / 2, least) : 0;
  free_bytes_ -= bytes;
  changed_.notify_all();
  if (!taken) return job.Check();
  return Share(this, bytes);
}

void MemoryShares::GiveBack(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  free_bytes_ += bytes;
  changed_.notify_all();
}

}  // namespace modelstore
