#include <gtest/gtest.h>

#include <limits>

#include "cli/format.h"

namespace modelstore {
namespace {

TEST(HumanBytes, IsDecimalWithOneDigit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.0 kB");
  EXPECT_EQ(HumanBytes(269060552), "269.1 MB");
  EXPECT_EQ(HumanBytes(1'234'000'000), "1.2 GB");
  EXPECT_EQ(HumanBytes(std::numeric_limits<uint64_t>::max()), "18.4 EB");
}

TEST(HumanBytes, NeverPrintsAThousandOfAUnit) {
  EXPECT_EQ(HumanBytes(999'949), "999.9 kB");
  EXPECT_EQ(HumanBytes(999'950), "1.0 MB");
  EXPECT_EQ(HumanBytes(999'999'999), "1.0 GB");
}

TEST(ExactBytes, GroupsThousands) {
  EXPECT_EQ(ExactBytes(0), "0");
  EXPECT_EQ(ExactBytes(999), "999");
  EXPECT_EQ(ExactBytes(1000), "1,000");
  EXPECT_EQ(ExactBytes(269060552), "269,060,552");
}

TEST(Ratios, HaveOneDigitAndADashForNothing) {
  EXPECT_EQ(Ratio(240, 100), "2.4x");
  EXPECT_EQ(Ratio(100'000, 100), "1000x");
  EXPECT_EQ(Ratio(0, 5), "-");
  EXPECT_EQ(Ratio(5, 0), "-");
  EXPECT_EQ(Percent(0.1074), "10.7 %");
  EXPECT_EQ(Percent(1), "100.0 %");
}

TEST(Durations, ReadWell) {
  EXPECT_EQ(HumanSeconds(1.24), "1.2 s");
  EXPECT_EQ(HumanSeconds(59.96), "1 min 00 s");
  EXPECT_EQ(HumanSeconds(185), "3 min 05 s");
  EXPECT_EQ(HumanSeconds(3660), "1 h 01 min");
  EXPECT_EQ(Clock(0), "0:00");
  EXPECT_EQ(Clock(2.1), "0:03");
  EXPECT_EQ(Clock(3723), "1:02:03");
  EXPECT_EQ(Clock(-5), "0:00");
  EXPECT_EQ(Clock(1e300), "99:59:59");
}

TEST(Words, CountAndShape) {
  EXPECT_EQ(Plural(1, "file"), "1 file");
  EXPECT_EQ(Plural(0, "file"), "0 files");
  EXPECT_EQ(Plural(1200, "tensor"), "1,200 tensors");
  EXPECT_EQ(ShapeText({}), "scalar");
  EXPECT_EQ(ShapeText({49152, 576}), "49152 x 576");
}

TEST(Printable, LeavesTextAlone) {
  EXPECT_EQ(Printable("team/llama-ft 2.0"), "team/llama-ft 2.0");
  EXPECT_EQ(Printable("modèle-模型-🦙"), "modèle-模型-🦙");
}

TEST(Printable, EscapesWhatATerminalObeys) {
  EXPECT_EQ(Printable("a\x1b[31mb"), "a\\x1b[31mb");
  EXPECT_EQ(Printable(std::string_view("nul\0\n\r\t\x7f", 8)), "nul\\x00\\x0a\\x0d\\x09\\x7f");
  EXPECT_EQ(Printable("csi\xc2\x9b"), "csi\\u009b");                  // C1 control
  EXPECT_EQ(Printable("left\xe2\x80\xaeright"), "left\\u202eright");  // bidirectional override
}

TEST(Printable, EscapesWhatNobodySees) {
  EXPECT_EQ(Printable("base1\xe2\x80\x8b"), "base1\\u200b");                     // zero width space
  EXPECT_EQ(Printable("ba\xc2\xadse1"), "ba\\u00adse1");                         // soft hyphen
  EXPECT_EQ(Printable("base1\xf3\xa0\x81\x81"), "base1\\U000e0041");             // tag
  EXPECT_EQ(Printable("\xe2\x9d\xa4\xef\xb8\x8f"), "\xe2\x9d\xa4\xef\xb8\x8f");  // an emoji's variation selector
}

TEST(Printable, EscapesInvalidUtf8) {
  EXPECT_EQ(Printable("\xff"), "\\xff");
  EXPECT_EQ(Printable("\xc3"), "\\xc3");                             // cut off
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
}

TEST(DisplayWidth, CountsColumns) {
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("è"), 1u);
  EXPECT_EQ(DisplayWidth("e\xcc\x80"), 1u);  // combining accent
  EXPECT_EQ(DisplayWidth("模型"), 4u);
  EXPECT_EQ(DisplayWidth("├─ "), 3u);
}

TEST(ParseCount, HoldsItsRange) {
  EXPECT_EQ(*ParseCount("4", 4, 8), 4u);
  EXPECT_EQ(*ParseCount("8", 4, 8), 8u);
  for (const char* text : {"3", "9", "", "x", "5x", "-5", "5.0"}) EXPECT_FALSE(ParseCount(text, 4, 8).ok()) << text;
}

TEST(DefaultModelName, IsTheLastComponentAsTyped) {
  EXPECT_EQ(DefaultModelName("/models/llama", "/elsewhere/x"), "llama");
  EXPECT_EQ(DefaultModelName("models/llama///", "/elsewhere/x"), "llama");
  EXPECT_EQ(DefaultModelName("model.safetensors", "/a/blob123"), "model.safetensors");  // a link keeps its own name
}

TEST(DefaultModelName, IsTheRealNameWhereNoneIsTyped) {
  EXPECT_EQ(DefaultModelName(".", "/home/me/llama"), "llama");
  EXPECT_EQ(DefaultModelName("..", "/home/me"), "me");
  EXPECT_EQ(DefaultModelName("./", "/home/me/llama"), "llama");
  EXPECT_EQ(DefaultModelName("/", "/"), "");
}

TEST(Table, AlignsColumns) {
  Table table({{"MODEL"}, {"SIZE", Table::Align::kRight}, {"BASE"}});
  table.Row({{"a"}, {"1.0 kB"}, {"-"}});
  table.Row({{"模型"}, {"5 B"}, {"a"}});
  EXPECT_EQ(table.Render({}),
            "MODEL    SIZE  BASE\n"
            "a      1.0 kB  -\n"
            "模型      5 B  a\n");
}

TEST(Table, PaintsOnlyWithColours) {
  Table table({{"A"}});
  table.Row({{"x", Tone::kGood}});
  EXPECT_EQ(table.Render({}), "A\nx\n");
  EXPECT_EQ(table.Render({.color = true, .unicode = false, .width = 80}), "\x1b[2mA\x1b[0m\n\x1b[32mx\x1b[0m\n");
}

}  // namespace
}  // namespace modelstore
