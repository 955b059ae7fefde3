// Progress of a job on stderr (layer: cli): a bar on a terminal, a line now and then elsewhere.
//
// ProgressReporter is thread-safe: workers report from any thread. The renderings are pure.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "cli/format.h"
#include "codec/support/job_control.h"
#include "codec/support/mutex.h"

namespace modelstore {

struct ProgressState {
  std::string_view phase;
  uint64_t done_bytes = 0;
  uint64_t total_bytes = 0;  // 0: unknown
  double seconds = 0;        // since the phase began
};

// One line, at most style.width - 1 columns, no line end.
std::string RenderBar(const ProgressState& state, const Style& style);
// "storing: 121.1 MB of 269.1 MB (45.0 %), 312.0 MB/s, 0:01 left"
std::string RenderProgressLine(const ProgressState& state);

class ProgressReporter {
 public:
  enum class Mode : uint8_t { kNone, kBar, kLines };
  // Writes to `fd`. The style's width is asked of the terminal at each redraw.
  ProgressReporter(Mode mode, Style style, int fd) : mode_(mode), fd_(fd), style_(style) {}
  ~ProgressReporter() { Finish(); }

  void Update(const JobProgress& progress);
  // A line of text that stays, above the bar.
  void Message(std::string_view line);
  // Clears the bar.
  void Finish();

 private:
  const Mode mode_;
  const int fd_;
  Mutex mutex_;  // one line after the other
  Style style_ MS_GUARDED_BY(mutex_);
  std::string phase_ MS_GUARDED_BY(mutex_);
  double phase_start_ MS_GUARDED_BY(mutex_) = 0;
  bool bar_shown_ MS_GUARDED_BY(mutex_) = false;
  std::atomic<double> next_output_{0};  // seconds of the steady clock
};

}  // namespace modelstore
