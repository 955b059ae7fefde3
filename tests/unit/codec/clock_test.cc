#include "codec/support/clock.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

TEST(Clock, GoesOn) {
  const int64_t before = WallClockNs();
  EXPECT_GT(before, int64_t{1'600'000'000} * 1'000'000'000);
  EXPECT_GE(WallClockNs(), before);
}

}  // namespace
}  // namespace modelstore
