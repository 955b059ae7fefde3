// MemoryShares: one budget of bytes that jobs share, each for its whole length (layer: catalog/read).
//
// Thread-safe. Whoever comes gets half of what is free, at least kMinShareBytes, so that those who come later find
// something too; when less is left, jobs wait in order of arrival. A share is a promise of its holder: nothing here
// allocates.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>

#include "codec/support/job_control.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

class MemoryShares {
 public:
  static constexpr uint64_t kMinShareBytes = 6 << 20;

  // Bytes of the budget; given back when it dies. Must not outlive its MemoryShares.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept : of_(std::exchange(other.of_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Share& operator=(Share&& other) noexcept {
      std::swap(of_, other.of_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Share() {
      if (of_ != nullptr) of_->GiveBack(bytes_);
    }
    uint64_t bytes() const { return bytes_; }

   private:
    friend class MemoryShares;
    Share(MemoryShares* of, uint64_t bytes) : of_(of), bytes_(bytes) {}
    MemoryShares* of_ = nullptr;
    uint64_t bytes_ = 0;
  };

  // budget_bytes: at least kMinShareBytes.
  explicit MemoryShares(uint64_t budget_bytes) : budget_bytes_(budget_bytes), free_bytes_(budget_bytes) {}

  // Waits in the phase "waiting for memory" until there is a share, of at least `need_bytes` (at most the budget).
  // Errors: Cancelled.
  Result<Share> Take(JobControl& job, uint64_t need_bytes = 0);
  uint64_t budget_bytes() const { return budget_bytes_; }

 private:
  class Waiter;  // a job's place in `waiting_`

  void GiveBack(uint64_t bytes);
  bool IsNext(const JobControl& job, uint64_t least_bytes) const MS_REQUIRES(mutex_);

  const uint64_t budget_bytes_;
  Mutex mutex_;
  CondVar changed_;
  uint64_t free_bytes_ MS_GUARDED_BY(mutex_);
  std::deque<const JobControl*> waiting_ MS_GUARDED_BY(mutex_);  // in order of arrival
};

}  // namespace modelstore
