#include "codec/support/size_text.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

TEST(ParseSize, TakesBinaryAndDecimalUnits) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("256M"), 256ull << 20);
  EXPECT_EQ(*ParseSize("2G"), 2ull << 30);
  EXPECT_EQ(*ParseSize("2GiB"), 2ull << 30);
  EXPECT_EQ(*ParseSize("2GB"), 2'000'000'000u);
  EXPECT_EQ(*ParseSize("16383T"), 16383ull << 40);
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text :
       {"", "M", "-1", "1.5G", "1 G", "1g", "0x10", "1GG", "99999999999999999999", "18446744073709551615K"}) {
    const Result<uint64_t> parsed = ParseSize(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace modelstore
