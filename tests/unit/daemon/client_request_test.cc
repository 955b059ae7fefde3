#include "daemon/service/client_request.h"

#include <gtest/gtest.h>

#include "daemon/protocol/wire.h"

namespace modelstore {
namespace {

std::string RequestWithZeros(size_t count) {
  std::string text = R"({"protocol": 1, "version": "x", "request": "verify", "parameters": {"names": [0)";
  for (size_t i = 1; i < count; ++i) text += ",0";
  return text + "]}}";
}

TEST(ClientRequestTest, TheTreeOfARequestIsLimitedLikeItsText) {
  EXPECT_TRUE(ParseClientRequest(RequestWithZeros(20'000)).ok());
  const std::string many = RequestWithZeros(100'000);
  ASSERT_LT(many.size(), kMaxRequestBytes);
  const Status refused = ParseClientRequest(many).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("32768"), std::string_view::npos) << refused.ToString();
}

TEST(ClientRequestTest, WhatIsForMessagesOnlyIsCutAndAPathIsNot) {
  const std::string path(4096, 'p'), shown_as(5000, 's');
  const Result<std::vector<ClientFile>> files =
      ParseClientFiles(R"({"files": [{"path": ")" + path + R"(", "shown_as": ")" + shown_as + R"("}]})");
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  EXPECT_EQ(files->front().path, path);
  EXPECT_EQ(files->front().shown_as, shown_as.substr(0, 4096));
  EXPECT_EQ(ParseClientFiles(R"({"files": [{"path": ")" + path + R"(p"}]})").status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace modelstore
