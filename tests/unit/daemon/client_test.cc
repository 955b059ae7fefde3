#include "daemon/protocol/client.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include "codec/support/unique_fd.h"
#include "daemon/protocol/wire.h"

namespace modelstore {
namespace {

constexpr int kPatienceMs = 20'000;  // never waited for unless something is broken

// A folder with a socket in it, on which one connection is served by a function.
class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "modelstore-client.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/socket";
  }
  void TearDown() override {
    if (server_.joinable()) server_.join();
    if (listener_ >= 0) close(listener_);
    std::filesystem::remove_all(folder_);
  }

  void Listen(const std::string& path) {
    listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    ASSERT_EQ(bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(listen(listener_, 8), 0);
  }
  void Serve(std::function<void(int)> serve) {
    Listen(path_);
    server_ = std::thread([this, serve = std::move(serve)] {
      const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      ASSERT_GE(connection, 0);
      serve(connection);
      close(connection);
    });
  }
  // Takes the request and says `answers`.
  void ServeAnswers(std::vector<std::pair<FrameKind, std::string>> answers) {
    Serve([answers = std::move(answers)](int connection) {
      Take(connection);
      for (const auto& [kind, payload] : answers) Say(connection, payload, kind);
    });
  }

  static WireFrame Take(int connection) {
    Result<WireFrame> frame =
        ReceiveFrame(connection, {.descriptors = kMaxFrameDescriptors}, -1, kPatienceMs, kPatienceMs);
    EXPECT_TRUE(frame.ok()) << frame.status().message();
    return frame.ok() ? std::move(frame).value() : WireFrame();
  }
  static void Say(int connection, std::string_view payload, FrameKind kind = FrameKind::kJson) {
    static_cast<void>(SendFrame(connection, kind, AsBytes(payload), {}, kPatienceMs).ok());
  }
  void WriteFile(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(folder_ + "/" + path).parent_path());
    std::ofstream(folder_ + "/" + path) << text;
  }
  void Stop() { server_.join(); }

  std::string folder_, path_;
  int listener_ = -1;
  std::thread server_;
};

// What an export wrote, in words.
class RecordingSink final : public ExportSink {
 public:
  Status Begin(const std::vector<ModelFile>& files) override {
    for (const ModelFile& file : files)
      said += file.path + ":" + std::to_string(file.bytes) + ":" + std::to_string(file.mode) + ":" +
              ToText(file.mtime_ns) + " ";
    return OkStatus();
  }
  Status BeginFile(size_t index) override {
    said += "<" + std::to_string(index) + " ";
    return OkStatus();
  }
  Status Write(ByteSpan bytes) override {
    said += AsChars(bytes);
    return fail_write ? NoSpace("no room") : OkStatus();
  }
  Status EndFile() override {
    said += "> ";
    return OkStatus();
  }

  std::string said;
  bool fail_write = false;
};

TEST_F(ClientTest, SendsTheRequestAndGivesTheResultAsItCame) {
  std::string request;
  Serve([&](int connection) {
    request = Take(connection).payload;
    Say(connection, R"({"result": {"z": 1, "a": [1.5, null, "x"], "big": 18446744073709551615}})");
  });
  const Result<std::string> answer = CallDaemon(path_, {.request = "show", .parameters = R"({"name":"m"})"});
  Stop();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(*answer, R"({"z":1,"a":[1.5,null,"x"],"big":18446744073709551615})");
  EXPECT_NE(request.find(R"("protocol":1)"), std::string::npos) << request;
  EXPECT_NE(request.find(R"("request":"show","parameters":{"name":"m"})"), std::string::npos) << request;
  EXPECT_EQ(request.find("files"), std::string::npos) << request;
}

TEST_F(ClientTest, PassesAnErrorOnWithItsCode) {
  ServeAnswers({{FrameKind::kJson, R"({"error": {"code": "has_dependents", "message": "b needs a"}})"}});
  const Result<std::string> answer = CallDaemon(path_, {.request = "rm", .parameters = "{}"});
  EXPECT_EQ(answer.status().code(), StatusCode::kHasDependents);
  EXPECT_EQ(answer.status().message(), "b needs a");
}

TEST_F(ClientTest, AnErrorOfNoKnownCodeIsAnErrorAllTheSame) {
  for (const char* code : {"ok", "odd"}) {
    ServeAnswers({{FrameKind::kJson, std::string(R"({"error": {"code": ")") + code + R"(", "message": "m"}})"}});
    EXPECT_EQ(CallDaemon(path_, {.request = "ls", .parameters = "{}"}).status().code(), StatusCode::kInternal);
    Stop();
    close(std::exchange(listener_, -1));
    unlink(path_.c_str());
  }
}

TEST_F(ClientTest, SaysThatNoDaemonListens) {
  EXPECT_EQ(CallDaemon(path_, {.request = "ls", .parameters = "{}"}).status().code(), StatusCode::kUnavailable);
  Listen(path_);
  close(std::exchange(listener_, -1));  // what a killed daemon leaves
  const Status refused = CallDaemon(path_, {.request = "ls", .parameters = "{}"}).status();
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_NE(refused.message().find("start modelstored"), std::string::npos) << refused.message();
}

TEST_F(ClientTest, RefusesAPathThatNoSocketCanHave) {
  EXPECT_EQ(CallDaemon("", {.request = "ls", .parameters = "{}"}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CallDaemon("/" + std::string(200, 'x'), {.request = "ls", .parameters = "{}"}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, SaysThatTheDaemonEndedBeforeItAnswered) {
  ServeAnswers({{FrameKind::kJson, R"({"warning": "soon"})"}});
  const Status ended = CallDaemon(path_, {.request = "ls", .parameters = "{}"}).status();
  EXPECT_EQ(ended.code(), StatusCode::kUnavailable);
  EXPECT_NE(ended.message().find("ended before it answered"), std::string::npos) << ended.message();
}

TEST_F(ClientTest, SendsFilesInFramesThatOneMessageCanCarry) {
  constexpr size_t kFiles = kMaxFrameDescriptors + 47;
  for (size_t i = 0; i < kFiles; ++i) WriteFile("tree/f" + std::to_string(i), "content " + std::to_string(i));
  Result<SourceTree> tree = SourceTree::Scan(folder_ + "/tree");
  ASSERT_TRUE(tree.ok());
  std::string request;
  std::vector<size_t> frames;
  std::vector<std::string> contents;
  Serve([&](int connection) {
    request = Take(connection).payload;
    while (contents.size() < kFiles) {
      WireFrame frame = Take(connection);
      ASSERT_FALSE(frame.descriptors.empty());
      frames.push_back(frame.descriptors.size());
      EXPECT_NE(frame.payload.find("\"shown_as\":\"" + folder_ + "/tree/f"), std::string::npos);
      for (size_t i = 0; i < frame.descriptors.size(); ++i) {
        const int fd = frame.descriptors.Take(i);
        char text[64];
        const ssize_t n = pread(fd, text, sizeof text, 0);
        contents.emplace_back(text, static_cast<size_t>(std::max<ssize_t>(n, 0)));
        close(fd);
      }
    }
    Say(connection, R"({"result": {}})");
  });
  const Result<std::string> answer = CallDaemon(path_, {.request = "push", .parameters = "{}", .source = &*tree});
  Stop();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_NE(request.find("\"files\":300"), std::string::npos) << request;
  std::vector<size_t> expected(18, kFilesFrameDescriptors);
  expected.push_back(300 - 18 * kFilesFrameDescriptors);
  EXPECT_EQ(frames, expected);
  ASSERT_EQ(contents.size(), kFiles);
  for (size_t i = 0; i < kFiles; ++i) EXPECT_EQ(contents[i], "content " + tree->files()[i].path.substr(1));
}

TEST_F(ClientTest, HearsARefusalThatComesBeforeAllFilesWereSent) {
  // More text than a socket holds: the client is still sending when the daemon closes.
  for (size_t i = 0; i < 3000; ++i) WriteFile("tree/" + std::string(200, 'd') + std::to_string(i), "");
  Result<SourceTree> tree = SourceTree::Scan(folder_ + "/tree");
  ASSERT_TRUE(tree.ok());
  ServeAnswers({{FrameKind::kJson, R"({"error": {"code": "permission_denied", "message": "not you"}})"}});
  const Status refused = CallDaemon(path_, {.request = "push", .parameters = "{}", .source = &*tree}).status();
  EXPECT_EQ(refused.code(), StatusCode::kPermissionDenied) << refused.message();
}

TEST_F(ClientTest, NoticesAFileThatChangedBeforeItWasSent) {
  WriteFile("tree/a", "old");
  Result<SourceTree> tree = SourceTree::Scan(folder_ + "/tree");
  ASSERT_TRUE(tree.ok());
  // As if there were more files than descriptors.
  SourceFile& file = const_cast<SourceFile&>(tree->files()[0]);
  close(std::exchange(file.fd, -1));
  WriteFile("tree/a", "new and longer");
  Serve([](int connection) { Take(connection); });
  const Status changed = CallDaemon(path_, {.request = "push", .parameters = "{}", .source = &*tree}).status();
  EXPECT_EQ(changed.code(), StatusCode::kIo);
  EXPECT_NE(changed.message().find("changed while it was pushed"), std::string::npos) << changed.message();
}

TEST_F(ClientTest, SendsCancellationOnAndWaitsForTheAnswer) {
  JobControl job;
  std::string cancel;
  Serve([&](int connection) {
    Take(connection);
    job.Cancel();
    cancel = Take(connection).payload;
    Say(connection, R"({"error": {"code": "cancelled", "message": "rolled back"}})");
  });
  const Status cancelled = CallDaemon(path_, {.request = "push", .parameters = "{}", .job = &job}).status();
  Stop();
  EXPECT_EQ(cancel, R"({"cancel":true})");
  EXPECT_EQ(cancelled.code(), StatusCode::kCancelled);
  EXPECT_EQ(cancelled.message(), "rolled back");
}

// As a stopped one, or one whose disk hangs: it is connected to, and never answers.
TEST_F(ClientTest, ADaemonThatSaysNothingIsNotWaitedForForEver) {
  Listen(path_);
  const Status silent =
      CallDaemon(path_, {.request = "status", .parameters = "{}", .patience = std::chrono::seconds(1)}).status();
  EXPECT_EQ(silent.code(), StatusCode::kUnavailable);
  EXPECT_NE(silent.message().find("said nothing for 1 s"), std::string::npos) << silent.message();
}

TEST_F(ClientTest, ACancellationThatNobodyConfirmsEndsTheWait) {
  Listen(path_);
  JobControl job;
  std::thread user([&] {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    Take(connection);
    job.Cancel();
    Take(connection);  // the cancellation
    char byte;
    EXPECT_EQ(recv(connection, &byte, 1, 0), 0);  // the client has gone
    close(connection);
  });
  const Status cancelled = CallDaemon(path_, {.request = "push", .parameters = "{}", .job = &job}).status();
  EXPECT_EQ(cancelled.code(), StatusCode::kCancelled);
  EXPECT_NE(cancelled.message().find("has not confirmed it yet"), std::string::npos) << cancelled.message();
  user.join();
}

TEST_F(ClientTest, ACancellationEndsTheWaitForAFullQueue) {
  Listen(path_);
  ASSERT_EQ(listen(listener_, 0), 0);
  std::vector<UniqueFd> waiting;  // nobody accepts them
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  int connected = 0;
  while (connected == 0) {
    waiting.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    connected = connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  ASSERT_EQ(errno, EAGAIN);
  JobControl job;
  job.Cancel();
  const auto call = [&](JobControl* control) {
    return CallDaemon(path_, {.request = "ls", .parameters = "{}", .job = control, .patience = std::chrono::seconds(1)})
        .status();
  };
  EXPECT_EQ(call(&job).code(), StatusCode::kCancelled);
  EXPECT_EQ(call(nullptr).code(), StatusCode::kBusy);
}

TEST_F(ClientTest, ReportsProgressAndWarnings) {
  ServeAnswers({{FrameKind::kJson, R"({"progress": {"phase": "storing", "done_bytes": 2, "total_bytes": 10}})"},
                {FrameKind::kJson, R"({"warning": "odd file"})"},
                {FrameKind::kJson, R"({"progress": {"phase": "storing", "done_bytes": 10, "total_bytes": 10}})"},
                {FrameKind::kJson, R"({"progress": {"phase": "verifying", "done_bytes": 0, "total_bytes": 7}})"},
                {FrameKind::kJson, R"({"result": {}})"}});
  std::string said;
  JobControl job([&](const JobProgress& progress) {
    said += std::string(progress.phase) + " " + std::to_string(progress.done_bytes) + "/" +
            std::to_string(progress.total_bytes) + "; ";
  });
  job.on_warning = [&](const std::string& warning) { said += warning + "; "; };
  ASSERT_TRUE(CallDaemon(path_, {.request = "push", .parameters = "{}", .job = &job}).ok());
  EXPECT_EQ(said, "storing 0/10; storing 2/10; odd file; storing 10/10; verifying 0/7; verifying 0/7; ");
}

constexpr char kTwoFiles[] =
    R"({"files": [{"path": "a", "bytes": 5, "mode": 288, "mtime_ns": -1}, {"path": "d/b", "bytes": 0, "mode": 292, "mtime_ns": "10413792000000000005"}]})";

TEST_F(ClientTest, HandsAnExportToTheSink) {
  ServeAnswers({{FrameKind::kJson, kTwoFiles},
                {FrameKind::kData, "he"},
                {FrameKind::kJson, R"({"progress": {"phase": "writing", "done_bytes": 2, "total_bytes": 5}})"},
                {FrameKind::kData, "llo"},
                {FrameKind::kJson, R"({"file_done": 0})"},
                {FrameKind::kJson, R"({"file_done": 1})"},
                {FrameKind::kJson, R"({"result": {"files": 2}})"}});
  RecordingSink sink;
  const Result<std::string> answer = CallDaemon(path_, {.request = "export", .parameters = "{}", .sink = &sink});
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(sink.said, "a:5:288:-1 d/b:0:292:10413792000000000005 <0 hello> <1 > ");
}

TEST_F(ClientTest, EndsWithTheSinksError) {
  ServeAnswers({{FrameKind::kJson, kTwoFiles}, {FrameKind::kData, "hello"}});
  RecordingSink sink;
  sink.fail_write = true;
  EXPECT_EQ(CallDaemon(path_, {.request = "export", .parameters = "{}", .sink = &sink}).status().code(),
            StatusCode::kNoSpace);
}

struct Nonsense {
  const char* what;
  bool with_sink;
  std::vector<std::pair<FrameKind, std::string>> answers;
};

class ClientNonsenseTest : public ClientTest, public ::testing::WithParamInterface<Nonsense> {};

TEST_P(ClientNonsenseTest, IsRefused) {
  ServeAnswers(GetParam().answers);
  RecordingSink sink;
  const Status status =
      CallDaemon(path_, {.request = "export", .parameters = "{}", .sink = GetParam().with_sink ? &sink : nullptr})
          .status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.message();
}

INSTANTIATE_TEST_SUITE_P(
    All, ClientNonsenseTest,
    ::testing::Values(
        Nonsense{"NotJson", false, {{FrameKind::kJson, "hello"}}},
        Nonsense{"NotAnObject", false, {{FrameKind::kJson, "[]"}}},
        Nonsense{"TwoThings", false, {{FrameKind::kJson, R"({"result": {}, "error": {}})"}}},
        Nonsense{"Unknown", false, {{FrameKind::kJson, R"({"surprise": 1})"}}},
        Nonsense{"ResultNotAnObject", false, {{FrameKind::kJson, R"({"result": 1})"}}},
        Nonsense{"TooDeep", false, {{FrameKind::kJson, R"({"result": {"a": )" + std::string(1'000'000, '[')}}},
        Nonsense{"ProgressWithoutNumbers", false, {{FrameKind::kJson, R"({"progress": {"done_bytes": -1}})"}}},
        Nonsense{"DataThatNobodyAskedFor", false, {{FrameKind::kData, "x"}}},
        Nonsense{"FilesThatNobodyAskedFor", false, {{FrameKind::kJson, kTwoFiles}}},
        Nonsense{"DataOfNoFile", true, {{FrameKind::kData, "x"}}},
        Nonsense{"FilesTwice", true, {{FrameKind::kJson, kTwoFiles}, {FrameKind::kJson, kTwoFiles}}},
        Nonsense{"AFileWithoutAttributes", true, {{FrameKind::kJson, R"({"files": [{"path": "a", "bytes": 5}]})"}}},
        Nonsense{"TooMuchData", true, {{FrameKind::kJson, kTwoFiles}, {FrameKind::kData, "hello!"}}},
        Nonsense{
            "AFileThatEndsEarly",
            true,
            {{FrameKind::kJson, kTwoFiles}, {FrameKind::kData, "hell"}, {FrameKind::kJson, R"({"file_done": 0})"}}},
        Nonsense{
            "AnotherFileThatEnds",
            true,
            {{FrameKind::kJson, kTwoFiles}, {FrameKind::kData, "hello"}, {FrameKind::kJson, R"({"file_done": 1})"}}},
        Nonsense{
            "AnEndTooMany", true, {{FrameKind::kJson, R"({"files": []})"}, {FrameKind::kJson, R"({"file_done": 0})"}}},
        Nonsense{"AnEndBeforeAllFiles", true, {{FrameKind::kJson, kTwoFiles}, {FrameKind::kJson, R"({"result": {}})"}}},
        Nonsense{"AnExportWithoutFiles", true, {{FrameKind::kJson, R"({"result": {}})"}}}),
    [](const auto& instance) { return std::string(instance.param.what); });

TEST_F(ClientTest, BytesThatAreNoFrameAreRefused) {
  Serve([](int connection) {
    Take(connection);
    ASSERT_EQ(send(connection, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, MSG_NOSIGNAL), 28);
  });
  EXPECT_EQ(CallDaemon(path_, {.request = "ls", .parameters = "{}"}).status().code(), StatusCode::kUnsupported);
}

TEST_F(ClientTest, TheUsersDaemonIsPreferredWhenItListens) {
  const char* before = getenv("XDG_RUNTIME_DIR");
  const std::string kept = before == nullptr ? "" : before;
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(UserSocketPath(), "");
  EXPECT_EQ(FindDaemonSocket(), kSystemSocketPath);
  setenv("XDG_RUNTIME_DIR", folder_.c_str(), 1);
  const std::string user = folder_ + "/modelstore/modelstore.sock";
  EXPECT_EQ(UserSocketPath(), user);
  EXPECT_EQ(FindDaemonSocket(), kSystemSocketPath);
  std::filesystem::create_directory(folder_ + "/modelstore");
  Listen(user);
  EXPECT_EQ(FindDaemonSocket(), user);
  close(std::exchange(listener_, -1));
  EXPECT_EQ(FindDaemonSocket(), kSystemSocketPath);
  before == nullptr ? unsetenv("XDG_RUNTIME_DIR") : setenv("XDG_RUNTIME_DIR", kept.c_str(), 1);
}

}  // namespace
}  // namespace modelstore
