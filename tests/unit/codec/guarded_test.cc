#include "codec/support/guarded.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace modelstore {
namespace {

TEST(Guarded, PassesOnWhatIsReturned) {
  EXPECT_TRUE(Guarded([] { return OkStatus(); }).ok());
  EXPECT_EQ(Guarded([] { return IoError("disk"); }).message(), "disk");
  EXPECT_EQ(*Guarded([]() -> Result<int> { return 7; }), 7);
}

TEST(Guarded, TurnsExceptionsIntoFailures) {
  EXPECT_EQ(Guarded([]() -> Status { throw std::bad_alloc(); }).code(), StatusCode::kResourceExhausted);
  const auto no_thread = []() -> Result<int> {
    throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
  };
  EXPECT_EQ(Guarded(no_thread).status().code(), StatusCode::kResourceExhausted);
  const Status failure = Guarded([]() -> Status { throw std::length_error("too long"); });
  EXPECT_EQ(failure.code(), StatusCode::kInternal);
  EXPECT_NE(failure.message().find("too long"), std::string_view::npos);
  EXPECT_EQ(Guarded([]() -> Status { throw 7; }).code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace modelstore
