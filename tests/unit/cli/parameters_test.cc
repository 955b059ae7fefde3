#include "daemon/handlers/parameters.h"

#include <gtest/gtest.h>

#include "daemon/handlers/handlers.h"

namespace modelstore {
namespace {

TEST(Parameters, GivesTypedValues) {
  const Result<Parameters> parsed = Parameters::Parse(R"({"a":"x","b":true,"c":["1","2"]})", {"a", "b", "c", "d"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed->String("a"), "x");
  EXPECT_TRUE(*parsed->Bool("b"));
  EXPECT_EQ(*parsed->Strings("c"), (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(*parsed->String("d", "fallback"), "fallback");
  EXPECT_FALSE(*parsed->Bool("d", false));
  EXPECT_TRUE(parsed->Strings("d")->empty());
}

TEST(Parameters, NamesWhatIsWrong) {
  const Result<Parameters> parsed = Parameters::Parse(R"({"a":1,"b":"yes","c":["1",2]})", {"a", "b", "c"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->String("a").status().message(), "parameter 'a': expected a string, found number");
  EXPECT_EQ(parsed->Bool("b", false).status().message(), "parameter 'b': expected a boolean, found string");
  EXPECT_FALSE(parsed->Strings("c").ok());
  EXPECT_EQ(parsed->String("d").status().message(), "parameter 'd': expected a string, found nothing");
}

TEST(Parameters, RefusesOtherDocumentsAndKeys) {
  for (const char* text : {"", "[]", "1", "null", "{", "{\"a\":1}x"})
    EXPECT_FALSE(Parameters::Parse(text, {"a"}).ok()) << text;
  EXPECT_EQ(Parameters::Parse(R"({"b":1})", {"a"}).status().message(), "unknown parameter 'b'");
}

TEST(Handlers, AreFoundByName) {
  for (const Handler& handler : Handlers()) EXPECT_EQ(FindHandler(handler.name), &handler);
  EXPECT_EQ(FindHandler("pushh"), nullptr);
  ASSERT_NE(FindHandler("push"), nullptr);
  EXPECT_TRUE(FindHandler("push")->creates_store);
  for (const char* name : {"ls", "show", "report", "verify", "export"}) EXPECT_FALSE(FindHandler(name)->writes) << name;
}

template <typename Row>
concept NeedsNoLimit = requires {
  Row{.name = "heavy", .writes = true, .files = RequestFiles::kNone, .run = nullptr};
};
template <typename Row>
concept TakesALimit = requires {
  Row{.name = "heavy",
      .writes = true,
      .limit = RequestLimit::kWholeModels,
      .files = RequestFiles::kNone,
      .run = nullptr};
};

TEST(Handlers, ARowWithoutItsLimitDoesNotCompile) {
  static_assert(TakesALimit<Handler>);
  static_assert(!NeedsNoLimit<Handler>);
}

TEST(Handlers, WhatReadsOrStoresWholeModelsIsLimited) {
  for (const char* name : {"push", "compact", "derive"})
    EXPECT_EQ(FindHandler(name)->limit, RequestLimit::kPush) << name;
  for (const char* name : {"verify", "export"}) EXPECT_EQ(FindHandler(name)->limit, RequestLimit::kWholeModels) << name;
  for (const char* name : {"ls", "show", "report"})
    EXPECT_EQ(FindHandler(name)->limit, RequestLimit::kDocument) << name;
}

}  // namespace
}  // namespace modelstore
