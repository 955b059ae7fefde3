#include "daemon/protocol/wire.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <thread>

namespace modelstore {
namespace {

constexpr int kPatienceMs = 20'000;  // never waited for unless something is broken
constexpr FrameLimits kLimits{.json_bytes = 1u << 20, .data_bytes = 4096, .descriptors = 4};

struct Header {
  uint32_t magic = kFrameMagic;
  uint8_t kind = 0;
  std::array<uint8_t, 3> zero = {0, 0, 0};
  uint32_t length = 0;

  std::string Text() const {
    std::string out(kFrameHeaderBytes, '\0');
    std::memcpy(out.data(), &magic, 4);
    out[4] = static_cast<char>(kind);
    std::memcpy(out.data() + 5, zero.data(), 3);
    std::memcpy(out.data() + 8, &length, 4);
    return out;
  }
};

std::string FrameText(std::string_view payload, uint8_t kind = 0) {
  return Header{.kind = kind, .length = static_cast<uint32_t>(payload.size())}.Text() + std::string(payload);
}

int OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<int>(std::distance(begin(all), end(all)));
}

class FrameTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_), 0);
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
  }
  void TearDown() override {
    for (const int fd : {ends_[0], ends_[1], pipe_[0], pipe_[1]})
      if (fd >= 0) close(fd);
  }
  int ours() const { return ends_[0]; }
  int theirs() const { return ends_[1]; }
  int some_fd() const { return pipe_[0]; }

  void SendRaw(std::string_view bytes) const {
    ASSERT_EQ(send(theirs(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  // Bytes with descriptors at an offset of a frame that SendFrame would not send.
  void SendRawWith(std::string_view bytes, std::vector<int> fds) const {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    std::string control(CMSG_SPACE(sizeof(int) * fds.size()), '\0');
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(rights), fds.data(), sizeof(int) * fds.size());
    ASSERT_EQ(sendmsg(theirs(), &message, MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  void CloseTheirs() {
    close(ends_[1]);
    ends_[1] = -1;
  }
  Result<WireFrame> Receive(const FrameLimits& limits = kLimits, int timeout_ms = kPatienceMs) const {
    return ReceiveFrame(ours(), limits, -1, timeout_ms, kPatienceMs);
  }
  // Until the socket takes no more.
  size_t FillTheirQueue() const {
    const std::string junk(1 << 16, 'x');
    size_t filled = 0;
    for (ssize_t n = 0; (n = send(ours(), junk.data(), junk.size(), MSG_DONTWAIT | MSG_NOSIGNAL)) > 0;)
      filled += static_cast<size_t>(n);
    return filled;
  }

  int ends_[2] = {-1, -1};
  int pipe_[2] = {-1, -1};
};

TEST_F(FrameTest, WhatIsSentArrives) {
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kJson, AsBytes("{}"), {some_fd(), some_fd()}, kPatienceMs).ok());
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kData, AsBytes(std::string(4096, 'd')), {}, kPatienceMs).ok());
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kData, {}, {}, kPatienceMs).ok());
  Result<WireFrame> json = Receive();
  ASSERT_TRUE(json.ok()) << json.status().ToString();
  EXPECT_EQ(json->kind, FrameKind::kJson);
  EXPECT_EQ(json->payload, "{}");
  ASSERT_EQ(json->descriptors.size(), 2u);
  // The same open file, in a descriptor that a child does not inherit.
  const int fd = json->descriptors.Take(1);
  EXPECT_EQ(json->descriptors.Take(1), -1);
  struct stat sent, got;
  ASSERT_EQ(fstat(some_fd(), &sent), 0);
  ASSERT_EQ(fstat(fd, &got), 0);
  EXPECT_EQ(got.st_ino, sent.st_ino);
  EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  close(fd);
  Result<WireFrame> data = Receive();
  ASSERT_TRUE(data.ok()) << data.status().ToString();
  EXPECT_EQ(data->kind, FrameKind::kData);
  EXPECT_EQ(data->payload, std::string(4096, 'd'));
  EXPECT_TRUE(data->descriptors.empty());
  EXPECT_EQ(Receive()->payload, "");
}

TEST_F(FrameTest, TheBytesAreThoseOfTheDocument) {
  ASSERT_TRUE(SendFrame(ours(), FrameKind::kData, AsBytes("abc"), {}, kPatienceMs).ok());
  char bytes[32];
  ASSERT_EQ(recv(theirs(), bytes, sizeof bytes, 0), 15);
  EXPECT_EQ(std::string(bytes, 15), std::string("MSF1\x01\0\0\0\x03\0\0\0abc", 15));
}

TEST_F(FrameTest, MalformedHeadersAreRefusedWithoutAllocating) {
  const struct {
    const char* what;
    Header header;
  } kCases[] = {
      {"another magic", {.magic = 0x47464d53}},
      {"HTTP", {.magic = 0x20544547}},
      {"an unknown kind", {.kind = 2}},
      {"the last kind", {.kind = 255}},
      {"a reserved byte", {.zero = {1, 0, 0}}},
      {"the last reserved byte", {.zero = {0, 0, 0x80}}},
      {"JSON one byte too long", {.length = kLimits.json_bytes + 1}},
      {"JSON of 4 GiB", {.length = UINT32_MAX}},
      {"data one byte too long", {.kind = 1, .length = kLimits.data_bytes + 1}},
      {"data of 4 GiB", {.kind = 1, .length = UINT32_MAX}},
  };
  for (const auto& [what, header] : kCases) {
    SCOPED_TRACE(what);
    SendRaw(header.Text());
    const Result<WireFrame> frame = Receive();
    ASSERT_FALSE(frame.ok());
    EXPECT_EQ(frame.status().code(), StatusCode::kInvalidArgument) << frame.status().ToString();
  }
  SendRaw(Header{.kind = 1, .length = 1}.Text());
  EXPECT_EQ(Receive({.json_bytes = 10, .data_bytes = 0}).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(FrameTest, ALengthThatIsNotFollowedByBytesTakesNoMemory) {
  SendRaw(Header{.length = kMaxAnswerBytes}.Text() + "x");
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  CloseTheirs();
  EXPECT_EQ(Receive({.json_bytes = kMaxAnswerBytes}).status().code(), StatusCode::kUnavailable);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 << 10);  // KiB
}

TEST_F(FrameTest, ArrivesInAnyPieces) {
  const std::string text = FrameText("{\"a\": 1}");
  for (size_t cut = 1; cut < text.size(); ++cut) {
    SCOPED_TRACE(cut);
    SendRaw(text.substr(0, cut));
    std::thread rest([&] { SendRaw(text.substr(cut)); });
    const Result<WireFrame> frame = Receive();
    rest.join();
    ASSERT_TRUE(frame.ok()) << frame.status().ToString();
    EXPECT_EQ(frame->payload, "{\"a\": 1}");
  }
  std::thread one_by_one([&] {
    for (const char c : text) SendRaw({&c, 1});
  });
  EXPECT_TRUE(Receive().ok());
  one_by_one.join();
}

TEST_F(FrameTest, ThePeerClosesAfterAnyByte) {
  const std::string text = FrameText("{\"a\": 1}");
  for (size_t sent = 0; sent < text.size(); ++sent) {
    SCOPED_TRACE(sent);
    if (sent > 0) SendRaw(text.substr(0, sent));
    CloseTheirs();
    EXPECT_EQ(Receive().status().code(), StatusCode::kUnavailable);
    close(ends_[0]);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_), 0);
  }
}

TEST_F(FrameTest, DescriptorsBeyondTheLimitAreClosedAgain) {
  const int before = OpenDescriptors();
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kJson, AsBytes("{}"), std::vector<int>(5, some_fd()), kPatienceMs).ok());
  EXPECT_EQ(Receive().status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(FrameTest, DescriptorsThatNobodyExpectsAreNotEvenReceived) {
  const int before = OpenDescriptors();
  const std::string half = FrameText("{}").substr(0, 13);
  SendRawWith(half, std::vector<int>(kMaxFrameDescriptors, some_fd()));
  // Refused at once: the rest of the frame is not waited for.
  EXPECT_EQ(Receive({.descriptors = 0}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(FrameTest, AsManyDescriptorsAsOneMessageCarries) {
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kJson, AsBytes("{}"), std::vector<int>(kMaxFrameDescriptors, some_fd()),
                        kPatienceMs)
                  .ok());
  const Result<WireFrame> frame = Receive({.descriptors = kMaxFrameDescriptors});
  ASSERT_TRUE(frame.ok()) << frame.status().ToString();
  EXPECT_EQ(frame->descriptors.size(), kMaxFrameDescriptors);
  EXPECT_FALSE(SendFrame(theirs(), FrameKind::kJson, AsBytes("{}"),
                         std::vector<int>(kMaxFrameDescriptors + 1, some_fd()), kPatienceMs)
                   .ok());
}

TEST_F(FrameTest, DescriptorsInTheMiddleAreRefused) {
  const int before = OpenDescriptors();
  SendRaw(FrameText("{\"a\": 1}").substr(0, 14));
  SendRawWith("rest of it, long enough", {some_fd()});
  EXPECT_EQ(Receive().status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(FrameTest, MoreDescriptorsThanTheProcessMayHaveOpen) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "UndefinedBehaviorSanitizer looks at memory through pipes, which fail when no descriptor is left";
#endif
  ASSERT_TRUE(SendFrame(theirs(), FrameKind::kJson, AsBytes("{}"), std::vector<int>(200, some_fd()), kPatienceMs).ok());
  const int before = OpenDescriptors();
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit low{static_cast<rlim_t>(before + 20), limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const Status status = Receive({.descriptors = kMaxFrameDescriptors}).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(FrameTest, SilenceEndsWithTheTimeout) {
  EXPECT_EQ(Receive(kLimits, 0).status().code(), StatusCode::kUnavailable);
  SendRaw(FrameText("{}").substr(0, 13));
  EXPECT_EQ(ReceiveFrame(ours(), kLimits, -1, kPatienceMs, 1).status().code(), StatusCode::kUnavailable);
}

TEST_F(FrameTest, TheWakeDescriptorEndsTheWaitForTheFirstByteOnly) {
  ASSERT_EQ(write(pipe_[1], "x", 1), 1);
  EXPECT_EQ(ReceiveFrame(ours(), kLimits, pipe_[0], kNoTimeout, kPatienceMs).status().code(), StatusCode::kCancelled);
}

TEST_F(FrameTest, AFullQueueGivesUpAndProgressDoesNotWait) {
  FillTheirQueue();
  EXPECT_EQ(SendFrame(ours(), FrameKind::kJson, AsBytes("{}"), {}, 1).code(), StatusCode::kUnavailable);
  const Result<bool> sent = TrySendFrame(ours(), FrameKind::kJson, AsBytes("{}"), kPatienceMs);
  ASSERT_TRUE(sent.ok()) << sent.status().ToString();
  EXPECT_FALSE(*sent);
}

TEST_F(FrameTest, AFrameLargerThanTheQueueIsSentWhole) {
  std::string payload(3 << 20, 'a');
  for (size_t i = 0; i < payload.size(); i += 997) payload[i] = static_cast<char>(i);
  std::thread sender(
      [&] { EXPECT_TRUE(SendFrame(theirs(), FrameKind::kJson, AsBytes(payload), {some_fd()}, kPatienceMs).ok()); });
  const Result<WireFrame> frame = Receive({.json_bytes = kMaxFilesBytes, .descriptors = 1});
  sender.join();
  ASSERT_TRUE(frame.ok()) << frame.status().ToString();
  EXPECT_TRUE(frame->payload == payload);
  EXPECT_EQ(frame->descriptors.size(), 1u);
}

TEST_F(FrameTest, AGonePeerIsUnavailableAndNoSignal) {
  CloseTheirs();
  EXPECT_EQ(SendFrame(ours(), FrameKind::kJson, AsBytes("{}"), {}, kPatienceMs).code(), StatusCode::kUnavailable);
  EXPECT_EQ(TrySendFrame(ours(), FrameKind::kJson, AsBytes("{}"), kPatienceMs).status().code(),
            StatusCode::kUnavailable);
}

}  // namespace
}  // namespace modelstore
