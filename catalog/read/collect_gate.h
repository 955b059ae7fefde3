// CollectGate: keeps those who rely on records staying (a push, a verification: they share) apart from those
// who take records away (rm, prune: alone) (layer: catalog/read).
//
// Thread-safe. Whoever waits says so as the phase of its job and can be cancelled. Not a shared mutex: there rm
// would wait for a push of an hour unseen and unstoppable, and every later push behind it. Here a waiting collector
// keeps newcomers out for some seconds only, again and again: enough to get in between pushes that are shorter than
// that; behind a longer one everybody else goes on.
//
// Who was cancelled and stays inside, because a file system does not answer it, is not waited for without end: after a
// time collectors take it for gone. It may read on and fail, but no longer get what it relied on to stay.
#pragma once

#include <chrono>
#include <cstddef>
#include <list>
#include <optional>
#include <utility>

#include "codec/support/job_control.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

class CollectGate {
 public:
  using Milliseconds = std::chrono::milliseconds;

  // A place inside; given back when it ends. The gate outlives it, and so does the job that got it.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept { *this = std::move(other); }
    Hold& operator=(Hold&& other) noexcept {
      Release();
      gate_ = std::exchange(other.gate_, nullptr);
      sharer_ = other.sharer_;
      return *this;
    }
    ~Hold() { Release(); }
    void Release();
    // Of a shared place: what the holder relies on stays until it is given back, even when its job is cancelled from
    // now on. Errors: Cancelled (the job was cancelled already).
    Status Keep();

   private:
    friend class CollectGate;
    struct Sharer {
      const JobControl* job = nullptr;
      bool stays = false;                                                // Keep
      std::optional<std::chrono::steady_clock::time_point> cancelled{};  // when a collector first saw that it was
    };
    explicit Hold(CollectGate* gate) : gate_(gate) {}
    Hold(CollectGate* gate, std::list<Sharer>::iterator sharer) : gate_(gate), sharer_(sharer) {}
    CollectGate* gate_ = nullptr;
    std::optional<std::list<Sharer>::iterator> sharer_;  // none: alone
  };

  // While a collector waits, newcomers wait for at most `closed`, then get in for `open`, and so on. Who was cancelled
  // `patience` ago is not waited for.
  explicit CollectGate(Milliseconds closed = Milliseconds(5000), Milliseconds open = Milliseconds(5000),
                       Milliseconds patience = Milliseconds(30'000))
      : closed_(closed), open_(open), patience_(patience) {}

  // Errors: Cancelled.
  Result<Hold> Share(JobControl& job);
  Result<Hold> EnterAlone(JobControl& job);

 private:
  using Clock = std::chrono::steady_clock;

  class Collector;  // one who waits to enter alone

  bool KeepsNewcomersOut() const MS_REQUIRES(mutex_);
  // How many share that a collector has to wait for.
  size_t Awaited() MS_REQUIRES(mutex_);

  const Milliseconds closed_, open_, patience_;
  Mutex mutex_;
  CondVar changed_;
  std::list<Hold::Sharer> sharing_ MS_GUARDED_BY(mutex_);
  bool is_collecting_ MS_GUARDED_BY(mutex_) = false;
  size_t collectors_waiting_ MS_GUARDED_BY(mutex_) = 0;
  Clock::time_point waiting_since_ MS_GUARDED_BY(mutex_);  // of the first of those
};

}  // namespace modelstore
