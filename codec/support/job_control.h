// JobControl: how a long operation reports progress and learns that it should stop (layer: codec/support).
//
// Any thread may call Advance, Cancel and cancelled. Begin and Warn are for the one thread that leads the job, while
// nobody else is at work on it. The owner of the job sets the callbacks before the job starts and outlives it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "codec/support/status.h"

namespace modelstore {

struct JobProgress {
  std::string_view phase;    // "reading", "storing", "verifying", …
  uint64_t done_bytes = 0;   // of total_bytes
  uint64_t total_bytes = 0;  // 0: unknown
};

class JobControl {
 public:
  using ProgressFn = std::function<void(const JobProgress&)>;
  JobControl() = default;
  explicit JobControl(ProgressFn on_progress) : on_progress_(std::move(on_progress)) {}

  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // Cancelled when the job should stop; polled at least once a block.
  Status Check() const { return cancelled() ? Cancelled("cancelled by the user") : OkStatus(); }

  // Warnings for the user ("model.safetensors: malformed header …, stored as plain content").
  void Warn(std::string message) {
    if (on_warning) on_warning(std::move(message));
  }
  void Begin(std::string_view phase, uint64_t total_bytes) {
    done_bytes_.store(0);
    phase_ = phase;
    total_bytes_ = total_bytes;
    Report(0);
  }
  void Advance(uint64_t bytes) { Report(done_bytes_.fetch_add(bytes) + bytes); }

  std::function<void(std::string)> on_warning;

 private:
  void Report(uint64_t done) {
    if (on_progress_) on_progress_({phase_, done, total_bytes_});
  }
  ProgressFn on_progress_;
  std::atomic<bool> cancelled_{false};
  std::atomic<uint64_t> done_bytes_{0};
  std::string phase_;
  uint64_t total_bytes_ = 0;
};

// One piece of a phase's work. However often its bytes are gone over (a second try does so), no more than they are
// counted. Thread-safe.
class JobPart {
 public:
  JobPart(JobControl& job, uint64_t bytes) : job_(job), left_bytes_(bytes) {}
  void Advance(uint64_t bytes) {
    uint64_t left = left_bytes_.load(std::memory_order_relaxed);
    while (!left_bytes_.compare_exchange_weak(left, left - std::min(left, bytes), std::memory_order_relaxed)) {
    }
    if (left > 0) job_.Advance(std::min(left, bytes));
  }

 private:
  JobControl& job_;
  std::atomic<uint64_t> left_bytes_;
};

}  // namespace modelstore
