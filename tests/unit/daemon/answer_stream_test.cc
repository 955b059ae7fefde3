#include "daemon/service/answer_stream.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

using std::chrono::seconds;

TEST(PaceTest, WhoTakesAMebibyteASecondIsServedForEver) {
  Pace pace;
  for (int i = 0; i < 10'000; ++i) pace.Sent(seconds(1), 1u << 20);
  EXPECT_EQ(pace.TimeoutMs(), kAnswerTimeoutMs);
}

TEST(PaceTest, WhoDripsHasAMinute) {
  Pace pace;
  pace.Sent(seconds(29), 1u << 20);
  EXPECT_EQ(pace.TimeoutMs(), kAnswerTimeoutMs);
  pace.Sent(seconds(29), 1u << 20);
  EXPECT_EQ(pace.TimeoutMs(), 4'000);
  pace.Sent(seconds(4), 0);
  EXPECT_EQ(pace.TimeoutMs(), 0);
}

TEST(PaceTest, WhatWasTakenFastIsNoStockForADrip) {
  Pace pace;
  pace.Sent(seconds(1), size_t{1} << 30);
  pace.Sent(seconds(50), 0);
  EXPECT_EQ(pace.TimeoutMs(), 10'000);
}

}  // namespace
}  // namespace modelstore
