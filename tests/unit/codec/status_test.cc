#include "codec/support/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

#include "codec/support/job_control.h"

namespace modelstore {
namespace {

StatusCode Code(int i) { return static_cast<StatusCode>(i); }

TEST(Status, OkCarriesNothing) {
  const Status ok;
  EXPECT_TRUE(ok.ok());
  EXPECT_EQ(ok.code(), StatusCode::kOk);
  EXPECT_EQ(ok.message(), "");
  EXPECT_EQ(ok.ToString(), "ok");
  EXPECT_TRUE(ok.WithContext("reading x").ok());
}

TEST(Status, ContextsGoOutermostFirst) {
  const Status s = Corruption("expected 4, found 5").WithContext("tensor t").WithContext("file f");
  EXPECT_EQ(s.code(), StatusCode::kCorruption);
  EXPECT_EQ(s.message(), "file f: tensor t: expected 4, found 5");
  EXPECT_EQ(s.ToString(), "corruption: file f: tensor t: expected 4, found 5");
}

TEST(Status, EveryCodeHasOneRow) {
  std::set<std::string> names;
  std::set<int> wires;
  for (int i = 0; i < kStatusCodeCount; ++i) {
    const StatusCode code = Code(i);
    EXPECT_EQ(StatusCodeFromName(StatusCodeName(code)), code);
    EXPECT_EQ(StatusCodeFromWire(StatusCodeWire(code)), code);
    EXPECT_EQ(StatusCodeErrno(code) == 0, code == StatusCode::kOk) << StatusCodeName(code);
    EXPECT_EQ(StatusCodeExit(code) == 0, code == StatusCode::kOk) << StatusCodeName(code);
    names.emplace(StatusCodeName(code));
    wires.insert(StatusCodeWire(code));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kStatusCodeCount));
  EXPECT_EQ(wires.size(), static_cast<size_t>(kStatusCodeCount));
  EXPECT_EQ(StatusCodeFromWire(999), StatusCode::kInternal);
  EXPECT_EQ(StatusCodeFromWire(-1), StatusCode::kInternal);
  EXPECT_EQ(StatusCodeFromName("no such code"), StatusCode::kInternal);
  EXPECT_EQ(StatusCodeName(Code(200)), "internal");
}

TEST(Status, ExitCodesOfTheInterface) {
  EXPECT_EQ(StatusCodeExit(StatusCode::kInvalidArgument), 2);
  EXPECT_EQ(StatusCodeExit(StatusCode::kNotFound), 3);
  EXPECT_EQ(StatusCodeExit(StatusCode::kAlreadyExists), 4);
  EXPECT_EQ(StatusCodeExit(StatusCode::kUnavailable), 10);
  EXPECT_EQ(StatusCodeExit(StatusCode::kLocked), 11);
  EXPECT_EQ(StatusCodeExit(StatusCode::kCorruption), 12);
  EXPECT_EQ(StatusCodeExit(StatusCode::kHasDependents), 13);
  EXPECT_EQ(StatusCodeExit(StatusCode::kNoSpace), 14);
  EXPECT_EQ(StatusCodeExit(StatusCode::kPermissionDenied), 15);
  EXPECT_EQ(StatusCodeExit(StatusCode::kCancelled), 130);
}

TEST(Status, FromErrno) {
  EXPECT_EQ(StatusFromErrno(ENOENT, "x").code(), StatusCode::kNotFound);
  EXPECT_EQ(StatusFromErrno(EACCES, "x").code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(StatusFromErrno(EDQUOT, "x").code(), StatusCode::kNoSpace);
  EXPECT_EQ(StatusFromErrno(EMFILE, "x").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusFromErrno(EIO, "x").code(), StatusCode::kIo);
  EXPECT_EQ(StatusFromErrno(123456, "x").code(), StatusCode::kIo);
  EXPECT_EQ(StatusFromErrno(ENOENT, "opening /a").message(), "opening /a: No such file or directory");
}

Status FailsWhen(bool fail) {
  RETURN_IF_ERROR(fail ? Busy("later") : OkStatus());
  return OkStatus();
}

Result<int> Half(int v) {
  if (v % 2 != 0) return InvalidArgument("odd");
  return v / 2;
}

Result<int> Quarter(int v) {
  ASSIGN_OR_RETURN(const int half, Half(v));
  ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(Status, MacrosReturnFailures) {
  EXPECT_TRUE(FailsWhen(false).ok());
  EXPECT_EQ(FailsWhen(true).code(), StatusCode::kBusy);
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
}

TEST(Status, ResultMovesItsValue) {
  Result<std::unique_ptr<int>> r(std::make_unique<int>(7));
  ASSERT_TRUE(r.ok());
  EXPECT_TRUE(r.status().ok());
  const std::unique_ptr<int> p = std::move(r).value();
  EXPECT_EQ(*p, 7);
}

TEST(JobControl, ReportsProgressAndCancels) {
  uint64_t done = 0, total = 0;
  JobControl job([&](const JobProgress& p) {
    done = p.done_bytes;
    total = p.total_bytes;
  });
  job.Begin("storing", 10);
  job.Advance(4);
  job.Advance(3);
  EXPECT_EQ(done, 7u);
  EXPECT_EQ(total, 10u);
  job.Begin("verifying", 20);
  EXPECT_EQ(done, 0u);
  EXPECT_TRUE(job.Check().ok());
  job.Cancel();
  EXPECT_EQ(job.Check().code(), StatusCode::kCancelled);
  job.Warn("nobody listens, nothing happens");
}

}  // namespace
}  // namespace modelstore
