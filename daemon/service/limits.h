// What all clients together may take (layer: daemon/service). Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>

#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

// At most `places` holders at once; others wait their turn.
class Gate {
 public:
  explicit Gate(size_t places) : free_(places) {}

  class Place {
   public:
    explicit Place(Gate* gate) : gate_(gate) {}
    Place(Place&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Place& operator=(Place&& other) noexcept {
      std::swap(gate_, other.gate_);
      return *this;
    }
    ~Place();

   private:
    Gate* gate_;
  };

  // Reports the phase "waiting" when it has to. Errors: Cancelled, when `job` is and WakeAll was called after that.
  Result<Place> Enter(JobControl& job);
  // Makes those who wait look at their jobs.
  void WakeAll();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t free_;
};

// Descriptors that clients passed and the daemon holds open.
class DescriptorBudget {
 public:
  // Of all clients together; no client may have more than half of them, so that one cannot keep all others out.
  explicit DescriptorBudget(size_t total) : total_(total), free_(total) {}

  class Share {
   public:
    Share() = default;
    Share(DescriptorBudget* budget, size_t count) : budget_(budget), count_(count) {}
    Share(Share&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), count_(other.count_) {}
    Share& operator=(Share&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(count_, other.count_);
      return *this;
    }
    ~Share();

   private:
    DescriptorBudget* budget_ = nullptr;
    size_t count_ = 0;
  };

  // Errors: ResourceExhausted, with the remedy.
  Result<Share> Take(size_t count);

 private:
  std::mutex mutex_;
  const size_t total_;
  size_t free_;
};

// Raises the soft limit of open descriptors to the hard one and returns how many clients may pass, all together: what
// the store, the mount and `max_clients` connections leave.
size_t PassableDescriptors(size_t max_clients);

}  // namespace modelstore
