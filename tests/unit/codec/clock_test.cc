#include "codec/support/clock.h"

#include <gtest/gtest.h>

#include <limits>

namespace modelstore {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();

TEST(Clock, TimesGoToTimespecAndBack) {
  for (const timespec time :
       {timespec{0, 0}, timespec{-1, 999'999'999}, timespec{-2, 500'000'000}, timespec{-1, 0}, timespec{1, 1},
        timespec{10'413'792'000, 5}, timespec{kMin, 0}, timespec{kMin, 999'999'999}, timespec{kMax, 999'999'999}}) {
    const timespec back = ToTimespec(ToTimeNs(time));
    EXPECT_EQ(back.tv_sec, time.tv_sec);
    EXPECT_EQ(back.tv_nsec, time.tv_nsec);
    EXPECT_EQ(ParseTimeNs(ToText(ToTimeNs(time))), ToTimeNs(time));
  }
  EXPECT_EQ(ToTimeNs({-2, 500'000'000}), -1'500'000'000);
}

TEST(Clock, TimesClampToWhat64BitsHold) {
  EXPECT_EQ(ClampToInt64(TimeNs{kMax} + 1), kMax);
  EXPECT_EQ(ClampToInt64(TimeNs{kMin} - 1), kMin);
  EXPECT_EQ(ClampToInt64(-5), -5);
  EXPECT_GT(WallClockNs(), 0);
}

TEST(Clock, TextsOfTimes) {
  EXPECT_EQ(ToText(0), "0");
  EXPECT_EQ(ToText(-1), "-1");
  EXPECT_EQ(ToText(TimeNs{10'413'792'000} * kNsPerSecond + 5), "10413792000000000005");
  EXPECT_EQ(ParseTimeNs("10413792000000000005"), TimeNs{10'413'792'000} * kNsPerSecond + 5);
  for (const char* text : {"", "-", "x", "1x", " 1", "+1", "1.5", "99999999999999999999999999999999999999999999999999"})
    EXPECT_FALSE(ParseTimeNs(text)) << text;
}

}  // namespace
}  // namespace modelstore
