#include "cli/progress.h"

#include <algorithm>
#include <chrono>

#include "cli/terminal.h"

namespace modelstore {
namespace {

constexpr double kBarInterval = 0.1;
constexpr double kLineInterval = 5;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

uint64_t Rate(const ProgressState& state) {
  return state.seconds > 0 ? static_cast<uint64_t>(static_cast<double>(state.done_bytes) / state.seconds) : 0;
}

// Seconds left, or a negative number while that cannot be told: the first second and the first hundredth say little.
double SecondsLeft(const ProgressState& state) {
  if (state.total_bytes == 0 || state.seconds < 1 || state.done_bytes < state.total_bytes / 100) return -1;
  if (state.done_bytes == 0) return -1;
  const uint64_t left = state.total_bytes - std::min(state.done_bytes, state.total_bytes);
  return static_cast<double>(left) * state.seconds / static_cast<double>(state.done_bytes);
}

double Fraction(const ProgressState& state) {
  return static_cast<double>(std::min(state.done_bytes, state.total_bytes)) / static_cast<double>(state.total_bytes);
}

std::string RightAligned(const std::string& text, size_t columns) {
  return std::string(columns - std::min(text.size(), columns), ' ') + text;
}

std::string BarOf(double fraction, size_t columns, bool unicode) {
  std::string out;
  if (!unicode) {
    const auto filled = static_cast<size_t>(fraction * static_cast<double>(columns));
    return out.append("[").append(filled, '#').append(columns - filled, '-').append("]");
  }
  constexpr std::string_view kEighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const auto eighths = static_cast<size_t>(fraction * static_cast<double>(columns) * 8);
  for (size_t i = 0; i < eighths / 8; ++i) out += "█";
  if (eighths / 8 < columns) {
    out += kEighths[eighths % 8];
    out.append(columns - eighths / 8 - 1, ' ');
  }
  return "▕" + out + "▏";
}

}  // namespace

std::string RenderBar(const ProgressState& state, const Style& style) {
  // Fields keep their width while their numbers change, so that the bar stands still.
  const std::string head = Printable(state.phase);
  const uint64_t rate = Rate(state);
  const double left = SecondsLeft(state);
  std::string tail = RightAligned(HumanBytes(state.done_bytes), 8);
  if (state.total_bytes != 0) tail += " / " + HumanBytes(state.total_bytes);
  tail += "  " + RightAligned(rate == 0 ? "" : HumanBytes(rate) + "/s", 10);
  if (left >= 0) tail += "  ETA " + Clock(left);

  const size_t room = style.width > 1 ? style.width - 1 : 0;
  std::string line = head + "  ";
  if (state.total_bytes != 0) {
    constexpr size_t kEta = 13, kFrame = 4, kPercent = 7;
    const size_t used =
        DisplayWidth(line) + kFrame + kPercent + 8 + 3 + HumanBytes(state.total_bytes).size() + 12 + kEta;
    // Below 10 columns a bar says nothing.
    if (used + 10 <= room) line += BarOf(Fraction(state), std::min<size_t>(room - used, 40), style.unicode) + "  ";
    line += RightAligned(std::to_string(static_cast<int>(Fraction(state) * 100)), 3) + " %  ";
  }
  line += tail;
  // What is too long is ASCII: then there is no bar in it.
  if (DisplayWidth(line) > room) line.resize(std::min(line.size(), room));
  return line;
}

std::string RenderProgressLine(const ProgressState& state) {
  std::string out = Printable(state.phase) + ": " + HumanBytes(state.done_bytes);
  if (state.total_bytes != 0) out += " of " + HumanBytes(state.total_bytes) + " (" + Percent(Fraction(state)) + ")";
  if (const uint64_t rate = Rate(state); rate != 0) out += ", " + HumanBytes(rate) + "/s";
  if (const double left = SecondsLeft(state); left >= 0) out += ", " + Clock(left) + " left";
  return out;
}

void ProgressReporter::Update(const JobProgress& progress) {
  if (mode_ == Mode::kNone) return;
  const double now = Now();
  // Workers report every block: most calls end here, without the lock.
  if (progress.done_bytes != 0 && now < next_output_.load(std::memory_order_relaxed)) return;
  const MutexLock lock(mutex_);
  const double interval = mode_ == Mode::kBar ? kBarInterval : kLineInterval;
  // A job that ends at once shows nothing.
  if (phase_.empty()) next_output_ = now + interval;
  if (phase_ != progress.phase || progress.done_bytes == 0) {
    phase_ = progress.phase;
    phase_start_ = now;
  }
  if (now < next_output_.load()) return;
  next_output_ = now + interval;
  const ProgressState state{phase_, progress.done_bytes, progress.total_bytes, now - phase_start_};
  if (mode_ == Mode::kLines) {
    WriteAll(fd_, RenderProgressLine(state) + "\n");
    return;
  }
  style_.width = TerminalWidth(fd_);
  WriteAll(fd_, "\r\x1b[K" + RenderBar(state, style_));
  bar_shown_ = true;
}

void ProgressReporter::Message(std::string_view line) {
  const MutexLock lock(mutex_);
  WriteAll(fd_, (bar_shown_ ? "\r\x1b[K" : "") + std::string(line) + "\n");
  bar_shown_ = false;
}

void ProgressReporter::Finish() {
  const MutexLock lock(mutex_);
  if (bar_shown_) WriteAll(fd_, "\r\x1b[K");
  bar_shown_ = false;
}

}  // namespace modelstore
