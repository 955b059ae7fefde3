#include "catalog/read/collect_gate.h"

#include <iterator>
#include <string>

namespace modelstore {
namespace {

// How late a cancellation may be noticed.
constexpr std::chrono::milliseconds kPoll(50);

}  // namespace

void CollectGate::Hold::Release() {
  if (gate_ == nullptr) return;
  {
    const MutexLock lock(gate_->mutex_);
    if (sharer_) {
      gate_->sharing_.erase(*sharer_);
    } else {
      gate_->is_collecting_ = false;
    }
  }
  std::exchange(gate_, nullptr)->changed_.NotifyAll();
}

Status CollectGate::Hold::Keep() {
  const MutexLock lock(gate_->mutex_);
  RETURN_IF_ERROR((*sharer_)->job->Check());
  (*sharer_)->stays = true;
  return OkStatus();
}

size_t CollectGate::Awaited() {
  size_t count = 0;
  for (Hold::Sharer& sharer : sharing_) {
    if (!sharer.stays && sharer.job->cancelled()) {
      if (!sharer.cancelled) sharer.cancelled = Clock::now();
      if (Clock::now() - *sharer.cancelled >= patience_) continue;
    }
    count += 1;
  }
  return count;
}

bool CollectGate::KeepsNewcomersOut() const {
  return collectors_waiting_ > 0 && (Clock::now() - waiting_since_) % (closed_ + open_) < closed_;
}

Result<CollectGate::Hold> CollectGate::Share(JobControl& job) {
  MutexLock lock(mutex_);
  bool announced = false;
  while (is_collecting_ || KeepsNewcomersOut()) {
    if (!std::exchange(announced, true)) {
      lock.Unlock();
      job.Begin("waiting for a removal or prune", 0);
      lock.Lock();
      continue;
    }
    RETURN_IF_ERROR(job.Check());
    changed_.WaitUntil(mutex_, Clock::now() + kPoll);
  }
  sharing_.push_back({.job = &job});
  return Hold(this, std::prev(sharing_.end()));
}

// Counted until it ends, also by an exception: newcomers are not kept out for one who is gone.
class CollectGate::Collector {
 public:
  explicit Collector(CollectGate& gate) : gate_(gate) {
    const MutexLock lock(gate_.mutex_);
    if (gate_.collectors_waiting_++ == 0) gate_.waiting_since_ = Clock::now();
  }
  ~Collector() {
    const MutexLock lock(gate_.mutex_);
    --gate_.collectors_waiting_;
    gate_.changed_.NotifyAll();
  }
  Collector(const Collector&) = delete;
  Collector& operator=(const Collector&) = delete;

 private:
  CollectGate& gate_;
};

Result<CollectGate::Hold> CollectGate::EnterAlone(JobControl& job) {
  const Collector collector(*this);
  MutexLock lock(mutex_);
  std::string announced;
  for (size_t awaited = 0; is_collecting_ || (awaited = Awaited()) > 0;) {
    const std::string phase =
        is_collecting_ ? "waiting for a removal or prune"
                       : "waiting for " + std::to_string(awaited) + " running " + (awaited == 1 ? "job" : "jobs");
    if (phase != announced) {
      announced = phase;
      lock.Unlock();
      job.Begin(phase, 0);
      lock.Lock();
      continue;
    }
    RETURN_IF_ERROR(job.Check());
    changed_.WaitUntil(mutex_, Clock::now() + kPoll);
  }
  is_collecting_ = true;
  return Hold(this);
}

}  // namespace modelstore
