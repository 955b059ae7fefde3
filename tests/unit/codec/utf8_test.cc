#include "codec/support/utf8.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

TEST(Utf8, DecodesOneCodePoint) {
  EXPECT_EQ(DecodeUtf8("a", 0).value, 0x61u);
  EXPECT_EQ(DecodeUtf8("a\xe2\x80\xae", 1).value, 0x202eu);
  EXPECT_EQ(DecodeUtf8("\xf0\x9f\xa6\x99", 0).bytes, 4u);
  for (const char* bad : {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x9b"})
    EXPECT_EQ(DecodeUtf8(bad, 0).bytes, 0u) << bad;
}

TEST(Utf8, EscapesInJsonWhatATerminalObeysAndNothingElse) {
  EXPECT_EQ(EscapeInJson("{\n  \"é\": \"模型 🦙\"\n}"), "{\n  \"é\": \"模型 🦙\"\n}");
  EXPECT_EQ(EscapeInJson("\"a\xe2\x80\xae"
                         "b\xc2\x9b"
                         "c\x7f\""),
            "\"a\\u202eb\\u009bc\\u007f\"");
  EXPECT_EQ(EscapeInJson("\xef\xbb\xbf"), "\\ufeff");
  EXPECT_EQ(EscapeInJson("\xf3\xa0\x81\x81"), "\\udb40\\udc41");  // a tag, which nobody sees
}

}  // namespace
}  // namespace modelstore
