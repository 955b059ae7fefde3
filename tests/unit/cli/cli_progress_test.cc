#include <gtest/gtest.h>
#include <unistd.h>

#include "cli/progress.h"

namespace modelstore {
namespace {

constexpr ProgressState kHalf = {
    .phase = "storing", .done_bytes = 134'500'000, .total_bytes = 269'000'000, .seconds = 2};

TEST(RenderBar, ShowsShareRateAndTimeLeft) {
  EXPECT_EQ(RenderBar(kHalf, {.color = false, .unicode = false, .width = 120}),
            "storing  [####################--------------------]   50 %  134.5 MB / 269.0 MB   67.2 MB/s  ETA 0:02");
}

TEST(RenderBar, FitsEveryWidth) {
  for (const bool unicode : {false, true}) {
    for (unsigned width = 0; width < 200; ++width) {
      const std::string line = RenderBar(kHalf, {.color = false, .unicode = unicode, .width = width});
      EXPECT_LT(DisplayWidth(line), std::max(width, 1u)) << width;
      EXPECT_EQ(line.find('\n'), std::string::npos);
    }
  }
}

TEST(RenderBar, StandsStillWhileNumbersChange) {
  const Style style = {.color = false, .unicode = false, .width = 90};
  ProgressState state = kHalf;
  const size_t end = RenderBar(state, style).find(']');
  ASSERT_NE(end, std::string::npos);
  for (const uint64_t done : {1'000ull, 99'000'000ull, 200'000'000ull, 269'000'000ull}) {
    state.done_bytes = done;
    EXPECT_EQ(RenderBar(state, style).find(']'), end) << done;
  }
}

TEST(RenderBar, UsesBlocksWhereTheyCanBeShown) {
  const std::string line = RenderBar(kHalf, {.color = false, .unicode = true, .width = 120});
  EXPECT_NE(line.find("▕████████████████████  "), std::string::npos) << line;
}

TEST(RenderBar, SaysNothingItCannotKnow) {
  const std::string unknown = RenderBar({.phase = "reading", .done_bytes = 5000, .total_bytes = 0, .seconds = 1}, {});
  EXPECT_EQ(unknown, "reading    5.0 kB    5.0 kB/s");
  const std::string start = RenderBar({.phase = "reading", .done_bytes = 0, .total_bytes = 10, .seconds = 0}, {});
  EXPECT_EQ(start.find("ETA"), std::string::npos) << start;
}

TEST(RenderBar, GuessesNoEndBeforeTheFirstSecondAndHundredth) {
  for (const ProgressState state :
       {ProgressState{.phase = "reading", .done_bytes = 500, .total_bytes = 1000, .seconds = 0.9},
        ProgressState{.phase = "reading", .done_bytes = 9, .total_bytes = 1000, .seconds = 60},
        ProgressState{.phase = "reading", .done_bytes = 0, .total_bytes = 10, .seconds = 60}}) {
    EXPECT_EQ(RenderBar(state, {}).find("ETA"), std::string::npos);
    EXPECT_EQ(RenderProgressLine(state).find("left"), std::string::npos);
  }
  const ProgressState later = {.phase = "reading", .done_bytes = 10, .total_bytes = 1000, .seconds = 1};
  EXPECT_NE(RenderProgressLine(later).find("1:39 left"), std::string::npos) << RenderProgressLine(later);
}

TEST(RenderBar, StaysAtTheEndWhenMoreComesThanAnnounced) {
  const std::string line = RenderBar({.phase = "x", .done_bytes = 20, .total_bytes = 10, .seconds = 1}, {});
  EXPECT_NE(line.find("100 %"), std::string::npos) << line;
}

TEST(RenderProgressLine, IsALine) {
  EXPECT_EQ(RenderProgressLine(kHalf), "storing: 134.5 MB of 269.0 MB (50.0 %), 67.2 MB/s, 0:02 left");
}

// What a reporter writes, through a pipe.
class Output {
 public:
  Output() { EXPECT_EQ(pipe(ends_), 0); }
  ~Output() {
    close(ends_[0]);
    if (ends_[1] >= 0) close(ends_[1]);
  }
  int fd() const { return ends_[1]; }
  std::string Take() {
    close(ends_[1]);
    ends_[1] = -1;
    std::string out;
    char buffer[4096];
    for (ssize_t n; (n = read(ends_[0], buffer, sizeof buffer)) > 0;) out.append(buffer, static_cast<size_t>(n));
    return out;
  }

 private:
  int ends_[2] = {-1, -1};
};

TEST(ProgressReporter, IsSilentForAJobThatEndsAtOnce) {
  for (const auto mode : {ProgressReporter::Mode::kNone, ProgressReporter::Mode::kLines}) {
    Output output;
    {
      ProgressReporter reporter(mode, {}, output.fd());
      reporter.Update({.phase = "storing", .done_bytes = 0, .total_bytes = 10});
      reporter.Update({.phase = "storing", .done_bytes = 10, .total_bytes = 10});
    }
    EXPECT_EQ(output.Take(), "");
  }
}

TEST(ProgressReporter, KeepsMessagesInEveryMode) {
  for (const auto mode :
       {ProgressReporter::Mode::kNone, ProgressReporter::Mode::kLines, ProgressReporter::Mode::kBar}) {
    Output output;
    ProgressReporter(mode, {}, output.fd()).Message("warning: odd file");
    EXPECT_EQ(output.Take(), "warning: odd file\n");
  }
}

}  // namespace
}  // namespace modelstore
