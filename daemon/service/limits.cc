#include "daemon/service/limits.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>

namespace modelstore {
namespace {

// RocksDB keeps up to 512 files open, FUSE a descriptor a thread; logs, sockets and what else opens for a moment.
constexpr size_t kOwnDescriptors = 768;
constexpr size_t kMinPassable = 64;

}  // namespace

Result<Gate::Place> Gate::Enter(JobControl& job) {
  std::unique_lock lock(mutex_);
  if (free_ == 0) {
    lock.unlock();
    job.Begin("waiting", 0);
    lock.lock();
  }
  changed_.wait(lock, [&] { return free_ > 0 || job.cancelled(); });
  RETURN_IF_ERROR(job.Check());
  --free_;
  return Place(this);
}

void Gate::WakeAll() {
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

Gate::Place::~Place() {
  if (gate_ == nullptr) return;
  const std::lock_guard lock(gate_->mutex_);
  ++gate_->free_;
  gate_->changed_.notify_one();
}

Result<DescriptorBudget::Share> DescriptorBudget::Take(size_t count) {
  const std::string remedy =
      "; push fewer files at once, or raise the daemon's limit of open files (LimitNOFILE= of its unit)";
  if (count > total_ / 2)
    return ResourceExhausted("the push has " + std::to_string(count) + " files; the daemon holds at most " +
                             std::to_string(total_ / 2) + " open for one client" + remedy);
  const std::lock_guard lock(mutex_);
  if (count > free_)
    return ResourceExhausted("the push has " + std::to_string(count) + " files; the daemon can open " +
                             std::to_string(free_) + " more now; try again when other pushes are done" + remedy);
  free_ -= count;
  return Share(this, count);
}

DescriptorBudget::Share::~Share() {
  if (budget_ == nullptr) return;
  const std::lock_guard lock(budget_->mutex_);
  budget_->free_ += count_;
}

size_t PassableDescriptors(size_t max_clients) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kMinPassable;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kMinPassable;
  const size_t own = kOwnDescriptors + max_clients;
  return std::max<size_t>(limit.rlim_cur > own ? limit.rlim_cur - own : 0, kMinPassable);
}

}  // namespace modelstore
