// CollectGate: keeps those who rely on records staying (a push, a verification: they share) apart from those
// who take records away (rm, prune: alone) (layer: catalog/read).
//
// Thread-safe. Whoever waits says so as the phase of its job and can be cancelled. Not a std::shared_mutex: there rm
// would wait for a push of an hour unseen and unstoppable, and every later push behind it. Here a waiting collector
// keeps newcomers out for some seconds only, again and again: enough to get in between pushes that are shorter than
// that; behind a longer one everybody else goes on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>

#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

class CollectGate {
 public:
  using Milliseconds = std::chrono::milliseconds;

  // A place inside; given back when it ends. The gate outlives it.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)), alone_(other.alone_) {}
    Hold& operator=(Hold&& other) noexcept {
      Release();
      gate_ = std::exchange(other.gate_, nullptr);
      alone_ = other.alone_;
      return *this;
    }
    ~Hold() { Release(); }
    void Release();

   private:
    friend class CollectGate;
    Hold(CollectGate* gate, bool alone) : gate_(gate), alone_(alone) {}
    CollectGate* gate_ = nullptr;
    bool alone_ = false;
  };

  // While a collector waits, newcomers wait for at most `closed`, then get in for `open`, and so on.
  explicit CollectGate(Milliseconds closed = Milliseconds(5000), Milliseconds open = Milliseconds(5000))
      : closed_(closed), open_(open) {}

  // Errors: Cancelled.
  Result<Hold> Share(JobControl& job);
  Result<Hold> EnterAlone(JobControl& job);

 private:
  using Clock = std::chrono::steady_clock;

  class Collector;  // one who waits to enter alone

  bool KeepsNewcomersOut() const;

  const Milliseconds closed_, open_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  size_t sharing_ = 0;
  bool is_collecting_ = false;
  size_t collectors_waiting_ = 0;
  Clock::time_point waiting_since_;  // of the first of those
};

}  // namespace modelstore
