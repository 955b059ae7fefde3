// What all clients together may take (layer: daemon/service). Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <map>
#include <optional>
#include <utility>

#include "codec/support/job_control.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

// On whose account something is taken: no user gets more than half of it, so that one cannot keep all others out. Null:
// an administrator's, without a share of its own.
using Account = std::optional<uid_t>;

// At most `places` holders at once; others wait their turn.
class Gate {
 public:
  explicit Gate(size_t places) : share_(places > 1 ? places / 2 : 1), free_(places) {}

  class Place {
   public:
    Place(Gate* gate, Account account) : gate_(gate), account_(account) {}
    Place(Place&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)), account_(other.account_) {}
    Place& operator=(Place&& other) noexcept {
      std::swap(gate_, other.gate_);
      std::swap(account_, other.account_);
      return *this;
    }
    ~Place();

   private:
    Gate* gate_;
    Account account_;
  };

  // Reports the phase "waiting" when it has to. Errors: Cancelled, when `job` is and WakeAll was called after that.
  Result<Place> Enter(JobControl& job, Account account);
  // Makes those who wait look at their jobs.
  void WakeAll();

 private:
  bool MayEnter(Account account) const MS_REQUIRES(mutex_);

  const size_t share_;  // of one account
  Mutex mutex_;
  CondVar changed_;
  size_t free_ MS_GUARDED_BY(mutex_);
  std::map<uid_t, size_t> held_ MS_GUARDED_BY(mutex_);
};

// Of the files of a push that are not held open, so many are open beside those that are being read.
inline constexpr size_t kWindowFiles = 8;

// Descriptors that clients passed and the daemon holds open.
class DescriptorBudget {
 public:
  // Of all clients together. No request gets more than half of them, nor an account in sum.
  explicit DescriptorBudget(size_t total) : total_(total), free_(total) {}

  class Share {
   public:
    Share() = default;
    Share(DescriptorBudget* budget, size_t count, Account account)
        : budget_(budget), count_(count), account_(account) {}
    Share(Share&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), count_(other.count_), account_(other.account_) {}
    Share& operator=(Share&& other) noexcept {
      std::swap(account_, other.account_);
      std::swap(budget_, other.budget_);
      std::swap(count_, other.count_);
      return *this;
    }
    ~Share();
    size_t count() const { return budget_ == nullptr ? 0 : count_; }

   private:
    DescriptorBudget* budget_ = nullptr;
    size_t count_ = 0;
    Account account_;
  };

  // At most `wanted`; fewer where there are not so many, but enough for a window of files. Errors: ResourceExhausted.
  Result<Share> Take(size_t wanted, Account account);

 private:
  const size_t total_;
  Mutex mutex_;
  size_t free_ MS_GUARDED_BY(mutex_);
  std::map<uid_t, size_t> held_ MS_GUARDED_BY(mutex_);
};

// How many descriptors clients may pass, all together: what the store, the mount and `max_clients` connections leave.
size_t PassableDescriptors(size_t max_clients);

}  // namespace modelstore
