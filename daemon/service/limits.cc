#include "daemon/service/limits.h"

#include <sys/resource.h>

#include <algorithm>
#include <string>

#include "catalog/store/kv_store.h"

namespace modelstore {
namespace {

// FUSE's descriptor a thread, logs, sockets and what else opens for a moment.
constexpr size_t kOwnDescriptors = 256;
constexpr size_t kMinPassable = 64;
// A push gets at least these, or all it wants: a window, and some that stay.
constexpr size_t kLeastFiles = kWindowFiles + 8;

size_t HeldBy(const std::map<uid_t, size_t>& held, Account account) {
  const auto it = account ? held.find(*account) : held.end();
  return it == held.end() ? 0 : it->second;
}

void GiveBack(std::map<uid_t, size_t>* held, Account account, size_t count) {
  if (account && ((*held)[*account] -= count) == 0) held->erase(*account);
}

}  // namespace

bool Gate::MayEnter(Account account) const { return free_ > 0 && HeldBy(held_, account) < share_; }

Result<Gate::Place> Gate::Enter(JobControl& job, Account account) {
  MutexLock lock(mutex_);
  if (!MayEnter(account)) {
    lock.Unlock();
    job.Begin("waiting", 0);
    lock.Lock();
  }
  while (!MayEnter(account) && !job.cancelled()) changed_.Wait(mutex_);
  RETURN_IF_ERROR(job.Check());
  if (account) ++held_[*account];
  --free_;
  return Place(this, account);
}

void Gate::WakeAll() {
  const MutexLock lock(mutex_);
  changed_.NotifyAll();
}

Gate::Place::~Place() {
  if (gate_ == nullptr) return;
  const MutexLock lock(gate_->mutex_);
  ++gate_->free_;
  GiveBack(&gate_->held_, account_, 1);
  gate_->changed_.NotifyAll();  // not everyone who waits may take it
}

Result<DescriptorBudget::Share> DescriptorBudget::Take(size_t wanted, Account account) {
  const MutexLock lock(mutex_);
  const size_t half = total_ / 2;
  const size_t left = std::min(free_, half - std::min(half, HeldBy(held_, account)));
  const size_t count = std::min(wanted, left);
  if (count < std::min(wanted, kLeastFiles))
    return ResourceExhausted("other pushes" +
                             (account && free_ >= kLeastFiles ? " of user " + std::to_string(*account) : "") +
                             " hold all the files open that they may; try again when they are done, or raise the "
                             "daemon's limit of open files (LimitNOFILE= of its unit)");
  if (account) held_[*account] += count;
  free_ -= count;
  return Share(this, count, account);
}

DescriptorBudget::Share::~Share() {
  if (budget_ == nullptr) return;
  const MutexLock lock(budget_->mutex_);
  budget_->free_ += count_;
  GiveBack(&budget_->held_, account_, count_);
}

size_t PassableDescriptors(size_t max_clients) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kMinPassable;
  const size_t own = StoreDescriptors() + kOwnDescriptors + max_clients;
  return std::max<size_t>(limit.rlim_cur > own ? limit.rlim_cur - own : 0, kMinPassable);
}

}  // namespace modelstore
