// Rules of the names of models and of their files.
#include <gtest/gtest.h>

#include <string>

#include "catalog/schema/records.h"
#include "codec/support/bytes.h"

namespace modelstore {
namespace {

TEST(Names, RulesOfModelNames) {
  for (const char* good : {"a", "team/llama-ft", "a.b_c", "..a", "a-", "\xc3\xa4\xf0\x9f\x98\x80", "with space"})
    EXPECT_TRUE(CheckModelName(good).ok()) << good << ": " << CheckModelName(good).ToString();
  const std::string long_part(256, 'a');
  std::string long_name = "a";
  while (long_name.size() <= 1024) long_name += "/a";
  for (const std::string& bad : {std::string(""),
                                 std::string("/a"),
                                 std::string("a/"),
                                 std::string("a//b"),
                                 std::string("."),
                                 std::string(".."),
                                 std::string("a/../b"),
                                 std::string("-a"),
                                 std::string("a/-b"),
                                 std::string("a\nb"),
                                 std::string("a\0b", 3),
                                 std::string("\x7f"),
                                 std::string("\xc2\x80"),
                                 std::string("\xff"),
                                 std::string("\xc0\xaf"),
                                 std::string("\xed\xa0\x80"),
                                 std::string("\xf4\x90\x80\x80"),
                                 std::string("\xe2\x82"),
                                 long_part,
                                 long_name}) {
    const Status status = CheckModelName(bad);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << ToHex(AsBytes(bad));
  }
}

TEST(Names, FilePathsMayStartWithADash) {
  EXPECT_TRUE(CheckFilePath("-a/--b").ok());
  EXPECT_FALSE(CheckFilePath("a/../b").ok());
  EXPECT_FALSE(CheckFilePath("/etc/passwd").ok());
  EXPECT_TRUE(CheckFilePath(std::string(255, 'a') + "/" + std::string(255, 'b')).ok());
}

}  // namespace
}  // namespace modelstore
