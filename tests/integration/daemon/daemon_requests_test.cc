// What clients may ask of a daemon and what it answers.
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <thread>

#include "daemon/protocol/client.h"
#include "tests/integration/daemon/daemon_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kStranger = 54321;
constexpr size_t kBigBytes = 96u << 20;  // a push that takes long enough to be interrupted

struct OpenedFd {
  OpenedFd(const std::string& path, int flags) : fd(open(path.c_str(), flags | O_CLOEXEC)) {}
  ~OpenedFd() { close(fd); }
  const int fd;
};

TEST_F(DaemonTest, StoresListsShowsAndRemoves) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 300'000);
  const Reply pushed = Push("m", file);
  ASSERT_EQ(pushed.Code(), "") << pushed;
  EXPECT_EQ(pushed.At("/result/verified"), "true");
  EXPECT_EQ(pushed.At("/result/logical_bytes"), "300000");
  EXPECT_EQ(Push("m", file).Code(), "already_exists");
  EXPECT_EQ(ModelNames(), std::vector<std::string>{"m"});
  if (can_mount()) {
    EXPECT_TRUE(ReadFile(mountpoint() + "/m/a.bin") == ReadFile(file));
  }
  EXPECT_EQ(Call("show", R"({"name": "m"})").At("/result/files/0/path"), "a.bin");
  EXPECT_EQ(Call("rename", R"({"from": "m", "to": "n"})").Code(), "");
  EXPECT_EQ(Call("show", R"({"name": "m"})").Code(), "not_found");
  EXPECT_EQ(Call("rm", R"({"name": "n"})").Code(), "");
  EXPECT_EQ(Call("prune").Code(), "");
  ExpectWhole({});
}

// As push --replace-source leaves them: links into the mount. Reading them through it could wait for itself.
TEST_F(DaemonTest, AFileOfTheMountIsTakenByItsRecord) {
  if (!can_mount()) GTEST_SKIP() << "mounting needs root and /dev/fuse";
  StartDaemon();
  const std::string file = WriteFile("a.bin", 5'000'000);
  ASSERT_EQ(Push("m", file).Code(), "");
  const std::string mounted = mountpoint() + "/m/a.bin";
  const Reply again = Push("again", mounted);
  ASSERT_EQ(again.Code(), "") << again;
  EXPECT_EQ(again.At("/result/levels/identical_file"), "5000000");
  const Reply updated = Push("m", mounted, R"({"update": true})");
  ASSERT_EQ(updated.Code(), "") << updated;
  EXPECT_TRUE(ReadFile(mounted) == ReadFile(file));
  // Also of a model that is removed while its file is open.
  const OpenedFd open_file(mountpoint() + "/again/a.bin", O_RDONLY);
  for (const char* name : {"m", "again"})
    ASSERT_EQ(Call("rm", R"({"name": ")" + std::string(name) + R"("})").Code(), "");
  ASSERT_EQ(Call("prune").Code(), "");
  const RawClient client(socket());
  client.SendPush("saved", {{"a.bin", open_file.fd}});
  EXPECT_EQ(client.Answer().Code(), "");
  EXPECT_TRUE(ReadFile(mountpoint() + "/saved/a.bin") == ReadFile(file));
  ExpectWhole({"saved"});
}

TEST_F(DaemonTest, ExportsAsFramesInOrder) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", (3u << 20) + 17);
  ASSERT_EQ(Push("m", file).Code(), "");
  const RawClient client(socket());
  ASSERT_TRUE(client.SendRequest("export", R"({"name": "m", "dir": "/shown"})").ok());
  const Reply files = client.Until("files");
  ASSERT_EQ(files.SizeOf("/files"), 1u) << files;
  EXPECT_EQ(files.At("/files/0/path"), "a.bin");
  EXPECT_EQ(files.At("/files/0/bytes"), std::to_string((3u << 20) + 17));
  uint64_t bytes = 0;
  Reply frame = client.Next();
  for (; !frame.Has("file_done"); frame = client.Next()) {
    ASSERT_TRUE(frame.Has("data") || frame.Has("progress")) << frame;
    if (frame.Has("data")) bytes += std::stoull(frame.At("/data"));
  }
  EXPECT_EQ(bytes, (3u << 20) + 17);
  EXPECT_EQ(frame.At("/file_done"), "0");
  EXPECT_EQ(client.Answer().At("/result/files"), "1");
}

TEST_F(DaemonTest, VerifiesANameOnceHoweverOftenItIsGiven) {
  StartDaemon();
  ASSERT_EQ(Push("m", WriteFile("a.bin", 1000)).Code(), "");
  const auto verify = [&](size_t names) {
    std::string list = "\"m\"";
    for (size_t i = 1; i < names; ++i) list += ",\"m\"";
    return Call("verify", "{\"names\": [" + list + "]}");
  };
  const Reply once = verify(1), often = verify(10'000);
  EXPECT_NE(once.At("/result/checked"), "");
  EXPECT_EQ(often.json(), once.json());
  EXPECT_EQ(verify(10'001).Code(), "invalid_argument");
}

TEST_F(DaemonTest, StatusSaysWhatGoesOn) {
  StartDaemon({.config = "memory_budget_bytes = \"256M\""});
  const Reply status = Call("status");
  EXPECT_EQ(status.At("/result/pid"), std::to_string(pid()));
  EXPECT_EQ(status.At("/result/store"), store());
  EXPECT_EQ(status.At("/result/mount"), can_mount() ? mountpoint() : "null");
  EXPECT_EQ(status.At("/result/memory_budget_bytes"), std::to_string(256u << 20));
  EXPECT_GT(std::stoull(status.At("/result/resident_bytes")), 0u);
  EXPECT_NE(status.At("/result/cache/hits"), "");
  EXPECT_NE(status.At("/result/decode/target"), "");
  ASSERT_EQ(status.SizeOf("/result/jobs"), 1u) << status;
  EXPECT_EQ(status.At("/result/jobs/0/request"), "status");
  EXPECT_EQ(status.At("/result/clients"), "1");
}

TEST_F(DaemonTest, OfTwoPushesOfOneNameOneWins) {
  StartDaemon();
  const OpenedFd a(WriteFile("a.bin", 2u << 20, 1), O_RDONLY), b(WriteFile("b.bin", 2u << 20, 2), O_RDONLY);
  const RawClient first(socket()), second(socket());
  first.SendPush("m", {{"f", a.fd}});
  second.SendPush("m", {{"f", b.fd}});
  const std::multiset<std::string> codes = {first.Answer().Code(), second.Answer().Code()};
  EXPECT_EQ(codes, (std::multiset<std::string>{"", "already_exists"}));
  ExpectWhole({"m"});
}

TEST_F(DaemonTest, SixtyFourClientsAtOnce) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 4096);
  std::vector<std::string> codes(64);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < codes.size(); ++i)
    clients.emplace_back(
        [&, i] { codes[i] = i % 2 == 0 ? Push("m" + std::to_string(i), file).Code() : Call("report").Code(); });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(codes, std::vector<std::string>(64));
  EXPECT_EQ(ModelNames().size(), 32u);
}

TEST_F(DaemonTest, MoreClientsThanAllowedAreToldSo) {
  StartDaemon({.config = "max_clients = 3"});
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 40; ++i) idle.push_back(std::make_unique<RawClient>(socket()));
  for (size_t i = 3; i < idle.size(); ++i) EXPECT_EQ(idle[i]->Next().Code(), "busy");
  idle.clear();
  AwaitIdle();
  EXPECT_EQ(Call("ls").Code(), "");
}

TEST_F(DaemonTest, GarbageIsAnsweredAndHarmsNobody) {
  StartDaemon();
  const auto frame = [](const std::string& payload, char kind = 0) {
    std::string header("MSF1\0\0\0\0\0\0\0\0", 12);
    header[4] = kind;
    const auto length = static_cast<uint32_t>(payload.size());
    std::memcpy(header.data() + 8, &length, 4);
    return header + payload;
  };
  const std::string head = R"({"protocol": 1, "version": "x", )";
  const std::pair<std::string, std::string> kCases[] = {
      {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "invalid_argument"},
      {std::string(100'000, '\xff'), "invalid_argument"},
      {std::string("MSF1\0\0\0\0\xff\xff\xff\xff", 12), "invalid_argument"},
      {frame("data", 1), "invalid_argument"},
      {frame("", 1), "invalid_argument"},
      {frame(""), "invalid_argument"},
      {frame("not JSON"), "invalid_argument"},
      {frame("[]"), "invalid_argument"},
      {frame(std::string(200'000, '[')), "invalid_argument"},
      {frame(std::string(kMaxRequestBytes + 1, ' ')), "invalid_argument"},
      {frame("{\"protocol\": 1, \"request\": \"ls\", \"parameters\": " + std::string(100'000, '{')),
       "invalid_argument"},
      {frame(R"({"request": "ls", "parameters": {}})"), "invalid_argument"},
      {frame(R"({"protocol": 2, "request": "ls", "parameters": {}})"), "unsupported"},
      {frame(R"({"protocol": -1, "request": "ls", "parameters": {}})"), "invalid_argument"},
      {frame(head + R"("request": 7, "parameters": {}})"), "invalid_argument"},
      {frame(head + R"("request": "format", "parameters": {}})"), "unsupported"},
      {frame(head + R"("request": "ls"})"), "invalid_argument"},
      {frame(head + R"("request": "ls", "parameters": {"x": 1}})"), "invalid_argument"},
      {frame(head + R"("request": "ls", "parameters": {}, "files": 1})"), "invalid_argument"},
      {frame(head + R"("request": "push", "parameters": {"name": "m"}, "files": -1})"), "invalid_argument"},
      {frame(head + R"("request": "push", "parameters": {"name": "m"}, "files": 18446744073709551615})"),
       "resource_exhausted"},
      {frame(head + R"("request": "push", "parameters": {"name": "../m"}, "files": 0})"), "invalid_argument"},
      {frame(head + R"("request": "push", "parameters": {"name": "m"}, "files": 1})") + frame(R"({"files": [{}]})"),
       "invalid_argument"},
      {frame(head + R"("request": "push", "parameters": {"name": "m"}, "files": 1})") + frame(R"({"cancel": true})"),
       "cancelled"},
  };
  for (const auto& [bytes, code] : kCases) {
    SCOPED_TRACE(bytes.substr(0, 120));
    const RawClient client(socket());
    client.SendBytes(bytes);
    EXPECT_EQ(client.Answer().Code(), code);
    EXPECT_TRUE(client.Next().Has("closed"));
  }
  ExpectWhole({});
}

TEST_F(DaemonTest, AnotherProtocolIsNamed) {
  StartDaemon();
  const RawClient client(socket());
  ASSERT_TRUE(client.SendJson(R"({"protocol": 99, "version": "9.9", "request": "ls", "parameters": {}})").ok());
  const Reply answer = client.Answer();
  EXPECT_EQ(answer.Code(), "unsupported");
  const std::string message = answer.Message();
  EXPECT_NE(message.find("protocol 99"), std::string::npos) << message;
  EXPECT_NE(message.find("protocol 1"), std::string::npos) << message;
}

TEST_F(DaemonTest, ClientsThatStallKeepNobodyFromWork) {
  StartDaemon();
  const RawClient silent(socket()), half_a_header(socket()), half_a_push(socket());
  half_a_header.SendBytes("MSF1\0");
  ASSERT_TRUE(half_a_push.SendRequest("push", R"({"name": "m"})", 2).ok());
  EXPECT_EQ(Push("n", WriteFile("n.bin", 1000)).Code(), "");
  EXPECT_EQ(Call("prune").Code(), "");
  Signal(SIGTERM);
  EXPECT_EQ(half_a_push.Answer().Code(), "unavailable");
  EXPECT_EQ(WaitForDaemon(), 0);
}

TEST_F(DaemonTest, OnlyRegularFilesOpenForReadingAreTaken) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 1000);
  ASSERT_EQ(mkfifo((root() + "/fifo").c_str(), 0600), 0);
  const OpenedFd writable(file, O_RDWR), path(file, O_PATH), fifo(root() + "/fifo", O_RDONLY | O_NONBLOCK),
      folder(root(), O_RDONLY), device("/dev/zero", O_RDONLY), good(file, O_RDONLY);
  for (const OpenedFd* bad : {&writable, &path, &fifo, &folder, &device}) {
    const RawClient client(socket());
    client.SendPush("m", {{"good", good.fd}, {"bad", bad->fd}});
    const Reply answer = client.Answer();
    EXPECT_EQ(answer.Code(), "invalid_argument") << answer;
    EXPECT_NE(answer.Message().find("/shown/bad"), std::string::npos) << answer;
  }
  for (const char* name : {"../a", "/a", "", "a//b"}) {
    const RawClient client(socket());
    client.SendPush("m", {{name, good.fd}});
    EXPECT_EQ(client.Answer().Code(), "invalid_argument") << name;
  }
  const RawClient twice(socket());
  twice.SendPush("m", {{"a", good.fd}, {"a", good.fd}});
  EXPECT_EQ(twice.Answer().Code(), "invalid_argument");
  ExpectWhole({});
}

// A push of more files than the daemon may open: those that it does not keep are asked for while it works.
TEST_F(DaemonTest, StoresMoreFilesThanItMayOpen) {
  constexpr size_t kFiles = 400;
  StartDaemon({.config = "max_clients = 16", .max_open_files = 256});
  fs::create_directories(root() + "/files/many");
  for (size_t i = 0; i < kFiles; ++i) WriteFile("many/f" + std::to_string(i), 2000 + i, i);
  const Result<SourceTree> tree = SourceTree::Scan(root() + "/files/many");
  ASSERT_TRUE(tree.ok());
  const Result<std::string> pushed =
      CallDaemon(socket(), {.request = "push", .parameters = R"({"name": "many"})", .source = &*tree});
  ASSERT_TRUE(pushed.ok()) << pushed.status().ToString();
  EXPECT_EQ(Call("verify").At("/result/failed"), "[]");
  EXPECT_EQ(Call("show", R"({"name": "many"})").SizeOf("/result/files"), kFiles);
}

// What is sent when a file is asked for again must be the file that was sent before.
TEST_F(DaemonTest, AnotherFileInPlaceOfOneThatIsAskedForIsRefused) {
  constexpr size_t kFiles = 300;
  StartDaemon({.config = "max_clients = 16", .max_open_files = 256});
  const OpenedFd file(WriteFile("a", 5000, 1), O_RDONLY), other(WriteFile("b", 5000, 2), O_RDONLY);
  const auto push = [&](const std::string& answer, const std::vector<int>& fds) {
    const RawClient client(socket());
    EXPECT_TRUE(client.SendRequest("push", R"({"name": "m"})", kFiles).ok());
    for (size_t i = 0; i < kFiles; ++i)
      EXPECT_TRUE(client.SendJson("{\"files\": [{\"path\": \"f" + std::to_string(i) + "\"}]}", {file.fd}).ok());
    const Reply asked = client.Until("open");
    EXPECT_TRUE(asked.Has("open")) << asked;
    (void)client.SendJson(answer, fds);
    return client.Answer();
  };
  const Reply changed = push(R"({"opened": true})", {other.fd});
  EXPECT_EQ(changed.Code(), "io") << changed;
  EXPECT_NE(changed.Message().find("changed while it was pushed"), std::string::npos) << changed;
  EXPECT_EQ(push(R"({"opened": true})", {}).Code(), "invalid_argument");
  EXPECT_EQ(push(R"({"not_opened": {"code": "permission_denied", "message": "no more"}})", {}).Message(), "no more");
  EXPECT_EQ(push(R"({"cancel": true})", {}).Code(), "cancelled");
  ExpectWhole({});
}

TEST_F(DaemonTest, AFileThatIsTruncatedWhileItIsStored) {
  StartDaemon();
  const std::string path = WriteFile("big.bin", kBigBytes);
  const OpenedFd file(path, O_RDONLY);
  const RawClient client(socket());
  client.SendPush("m", {{"big.bin", file.fd}});
  client.AwaitStoring();
  ASSERT_EQ(truncate(path.c_str(), 4096), 0);
  EXPECT_EQ(client.Answer().Code(), "io");
  ExpectWhole({});
}

TEST_F(DaemonTest, AClientThatCancelsGetsItsAnswerAndNothingIsStored) {
  StartDaemon();
  const OpenedFd file(WriteFile("big.bin", kBigBytes), O_RDONLY);
  const RawClient client(socket());
  client.SendPush("m", {{"big.bin", file.fd}});
  client.AwaitStoring();
  ASSERT_TRUE(client.SendJson(R"({"cancel": true})").ok());
  EXPECT_EQ(client.Answer().Code(), "cancelled");
  ExpectWhole({});
}

TEST_F(DaemonTest, AClientThatDiesInAPushLeavesNothing) {
  StartDaemon();
  const OpenedFd file(WriteFile("big.bin", kBigBytes), O_RDONLY);
  {
    const RawClient client(socket());
    client.SendPush("m", {{"big.bin", file.fd}});
    client.AwaitStoring();
  }
  AwaitIdle();
  ExpectWhole({});
}

TEST_F(DaemonTest, SigtermInAPushRollsBackAndEndsWithZero) {
  StartDaemon();
  ASSERT_EQ(Push("before", WriteFile("a.bin", 1000)).Code(), "");
  const OpenedFd file(WriteFile("big.bin", kBigBytes), O_RDONLY);
  const RawClient client(socket());
  client.SendPush("m", {{"big.bin", file.fd}});
  client.AwaitStoring();
  Signal(SIGTERM);
  EXPECT_EQ(client.Answer().Code(), "unavailable");
  EXPECT_EQ(WaitForDaemon(), 0);
  EXPECT_FALSE(fs::exists(socket()));
  if (can_mount()) {
    EXPECT_FALSE(fs::exists(mountpoint() + "/before"));
  }
  StartDaemon();
  ExpectWhole({"before"});
}

TEST_F(DaemonTest, AnEndThatTakesTooLongIsMadeAndTheStoreSurvives) {
  // Reads of the watched file wait for an answer that never comes.
  const int watch = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY);
  if (watch < 0) GTEST_SKIP() << "holding reads up needs CAP_SYS_ADMIN and fanotify: " << std::strerror(errno);
  StartDaemon({.config = "shutdown_seconds = 1"});
  ASSERT_EQ(Push("before", WriteFile("a.bin", 1000)).Code(), "");
  const std::string path = WriteFile("held.bin", 1000);
  if (fanotify_mark(watch, FAN_MARK_ADD, FAN_ACCESS_PERM, AT_FDCWD, path.c_str()) != 0) {
    close(watch);
    GTEST_SKIP() << "this kernel does not ask fanotify before reads: " << std::strerror(errno);
  }
  {
    const OpenedFd file(path, O_RDONLY);  // after the mark: who opened it before is not held up
    const RawClient client(socket());
    client.SendPush("m", {{"held.bin", file.fd}});
    pollfd asked{watch, POLLIN, 0};
    ASSERT_EQ(poll(&asked, 1, kPatienceMs), 1);
    EXPECT_EQ(Call("ls").Code(), "") << "others are served meanwhile";
    Signal(SIGTERM);
    EXPECT_EQ(WaitForDaemon(), 1);
  }
  close(watch);
  StartDaemon();
  ExpectWhole({"before"});
}

TEST_F(DaemonTest, ASocketThatIsServedIsNotTakenOver) {
  StartDaemon();
  const pid_t first = pid();
  const std::string command = std::string(MODELSTORED) + " --config /dev/null --store " + root() +
                              "/other --mount '' --socket " + socket() + " 2>/dev/null";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
  EXPECT_EQ(Call("status").At("/result/pid"), std::to_string(first));
}

// Else a file of the store would be standard error, and the log would be written into it.
TEST_F(DaemonTest, ClosedStreamsBecomeNoFilesOfTheStore) {
  StartDaemon({.without_streams = true});
  for (int fd = 0; fd <= STDERR_FILENO; ++fd)
    EXPECT_EQ(fs::read_symlink("/proc/" + std::to_string(pid()) + "/fd/" + std::to_string(fd)), "/dev/null");
  ASSERT_EQ(Push("m", WriteFile("a.bin", 1000)).Code(), "");
  EXPECT_EQ(ReadFile(store() + "/lock").substr(0, std::to_string(pid()).size()), std::to_string(pid()));
  Signal(SIGTERM);
  EXPECT_EQ(WaitForDaemon(), 0);
}

TEST_F(DaemonTest, ServesASocketThatSystemdPassed) {
  StartDaemon({.activate = true});
  EXPECT_EQ(Call("status").At("/result/pid"), std::to_string(pid()));
  EXPECT_FALSE(fs::exists(root() + "/not-made"));
  Signal(SIGTERM);
  EXPECT_EQ(WaitForDaemon(), 0);
  EXPECT_TRUE(fs::exists(socket())) << "it belongs to systemd";
}

TEST_F(DaemonTest, TellsSystemdThatItLivesAndThatItStops) {
  StartDaemon({.watchdog_usec = 200'000});
  AwaitNotification("WATCHDOG=1");
  AwaitNotification("WATCHDOG=1");
  Signal(SIGTERM);
  AwaitNotification("STOPPING=1");
  EXPECT_EQ(WaitForDaemon(), 0);
}

TEST_F(DaemonTest, SignalsThatMeanNothingEndNothing) {
  StartDaemon();
  for (const int number : {SIGHUP, SIGUSR1, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPIPE, SIGXFSZ,
                           SIGPWR, SIGSTKFLT, SIGCHLD, SIGRTMIN, SIGRTMIN + 5, SIGRTMAX})
    Signal(number);
  EXPECT_EQ(Call("ls").Code(), "");
  if (can_mount()) {
    EXPECT_TRUE(fs::exists(mountpoint() + "/."));
  }
}

TEST_F(DaemonTest, SignalsThatMeanAnEndEndItInOrder) {
  for (const int number : {SIGTERM, SIGINT, SIGQUIT, SIGXCPU}) {
    StartDaemon();
    Signal(number);
    EXPECT_EQ(WaitForDaemon(), 0) << "signal " << number;
    EXPECT_FALSE(fs::exists(socket()));
    std::error_code error;
    fs::status(mountpoint(), error);
    // The daemon made the folder, so it removes it; a dead mount would be "not connected".
    EXPECT_EQ(error, std::errc::no_such_file_or_directory) << "a mount is left: " << error.message();
  }
}

TEST_F(DaemonTest, AnExportThatNobodyTakesHoldsNothingUp) {
  StartDaemon();
  ASSERT_EQ(Push("m", WriteFile("a.bin", 16u << 20)).Code(), "");
  const RawClient stalled(socket());
  ASSERT_TRUE(stalled.SendRequest("export", R"({"name": "m", "dir": "/x"})").ok());
  ASSERT_TRUE(stalled.Until("data").Has("data"));
  EXPECT_EQ(Call("rm", R"({"name": "m"})").Code(), "");
  EXPECT_EQ(Call("prune").Code(), "");
  // Both were done while it was open: it still is, and gives all there was.
  EXPECT_EQ(ModelNames(), std::vector<std::string>());
  const Reply status = Call("status");
  EXPECT_EQ(status.At("/result/jobs/0/request"), "export") << status;
  EXPECT_EQ(stalled.Until("file_done").At("/file_done"), "0");
  EXPECT_EQ(stalled.Answer().At("/result/files"), "1");
}

TEST_F(DaemonTest, AnExportThatNobodyTakesDoesNotHoldUpTheEnd) {
  StartDaemon({.config = "shutdown_seconds = 20"});  // less than a client has to take a frame
  ASSERT_EQ(Push("m", WriteFile("a.bin", 16u << 20)).Code(), "");
  const RawClient stalled(socket());
  ASSERT_TRUE(stalled.SendRequest("export", R"({"name": "m", "dir": "/x"})").ok());
  ASSERT_TRUE(stalled.Until("data").Has("data"));
  Signal(SIGTERM);
  EXPECT_EQ(WaitForDaemon(), 0);
}

TEST_F(DaemonTest, AMountThatIsTakenAwayComesBack) {
  if (!can_mount()) GTEST_SKIP() << "mounting needs root and /dev/fuse";
  StartDaemon();
  ASSERT_EQ(Push("m", WriteFile("a.bin", 1000)).Code(), "");
  struct stat before, after;
  ASSERT_EQ(stat(mountpoint().c_str(), &before), 0);
  ASSERT_EQ(WEXITSTATUS(std::system(("umount " + mountpoint()).c_str())), 0);
  while (stat((mountpoint() + "/m/a.bin").c_str(), &after) != 0) std::this_thread::yield();
  EXPECT_TRUE(ReadFile(mountpoint() + "/m/a.bin") == ReadFile(root() + "/files/a.bin"));
  // Its files are known as its own again.
  EXPECT_EQ(Push("again", mountpoint() + "/m/a.bin").At("/result/levels/identical_file"), "1000");
}

TEST_F(DaemonTest, AReaderKeepsWhatItHasOpenThroughUpdateRemovalAndPrune) {
  if (!can_mount()) GTEST_SKIP() << "mounting needs root and /dev/fuse";
  StartDaemon();
  constexpr size_t kBytes = 8u << 20;
  const std::string old_file = WriteFile("a.bin", kBytes, 1);
  ASSERT_EQ(Push("m", old_file).Code(), "");
  const std::string old_bytes = ReadFile(old_file);
  const OpenedFd reader(mountpoint() + "/m/a.bin", O_RDONLY);
  ASSERT_GE(reader.fd, 0);
  void* const map = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, reader.fd, 0);
  ASSERT_NE(map, MAP_FAILED);
  const auto expect_old = [&] {
    ASSERT_EQ(posix_fadvise(reader.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    EXPECT_TRUE(std::memcmp(map, old_bytes.data(), kBytes) == 0);
  };
  WriteFile("a.bin", kBytes, 2);
  ASSERT_EQ(Push("m", old_file, R"({"update": true})").Code(), "");
  EXPECT_EQ(Call("prune").Code(), "");
  expect_old();
  EXPECT_TRUE(ReadFile(mountpoint() + "/m/a.bin") == ReadFile(old_file));
  EXPECT_EQ(Call("rm", R"({"name": "m"})").Code(), "");
  EXPECT_EQ(Call("prune").Code(), "");
  EXPECT_FALSE(fs::exists(mountpoint() + "/m"));
  expect_old();
  munmap(map, kBytes);
}

class DaemonRightsTest : public DaemonTest {
 protected:
  void SetUp() override {
    DaemonTest::SetUp();
    if (geteuid() != 0) GTEST_SKIP() << "acting as other users needs root";
  }
  // Exit codes of the children: 0 when the answer has this code.
  int CallAs(uid_t uid, const std::vector<gid_t>& groups, const std::string& request, const std::string& parameters,
             const std::string& code) {
    return AsUser(uid, uid, groups, [&] { return Call(request, parameters).Code() == code ? 0 : 1; });
  }
  int PushAs(uid_t uid, const std::vector<gid_t>& groups, const std::string& name, const std::string& file,
             const std::string& code, const std::string& more = "{}") {
    return AsUser(uid, uid, groups, [&] { return Push(name, file, more).Code() == code ? 0 : 1; });
  }
};

TEST_F(DaemonRightsTest, StrangersReadAndChangeNothing) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 1000);
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  ASSERT_EQ(Push("m", file).Code(), "");
  EXPECT_EQ(PushAs(kStranger, {}, "n", file, "permission_denied"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "rm", R"({"name": "m"})", "permission_denied"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "rename", R"({"from": "m", "to": "n"})", "permission_denied"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "prune", "{}", "permission_denied"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "verify", "{}", "permission_denied"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "verify", R"({"names": ["m"]})", ""), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "show", R"({"name": "m"})", ""), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "status", "{}", ""), 0);
  ExpectWhole({"m"});
}

TEST_F(DaemonRightsTest, AModelThatMayNotBeReadIsLikeNone) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 1000);
  ASSERT_EQ(chmod(file.c_str(), 0600), 0);
  ASSERT_EQ(Push("secret", file).Code(), "");
  for (const char* request : {"show", "rm"})
    EXPECT_EQ(CallAs(kStranger, {}, request, R"({"name": "secret"})", "not_found"), 0) << request;
  EXPECT_EQ(CallAs(kStranger, {}, "export", R"({"name": "secret", "dir": "/x"})", "not_found"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "verify", R"({"names": ["secret"]})", "not_found"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "rename", R"({"from": "secret", "to": "n"})", "not_found"), 0);
  EXPECT_EQ(AsUser(kStranger, kStranger, {}, [&] { return ModelNames().empty() ? 0 : 1; }), 0);
  EXPECT_EQ(AsUser(kStranger, kStranger, {}, [&] { return Call("report").At("/result/models") == "[]" ? 0 : 1; }), 0);
  EXPECT_EQ(ModelNames(), std::vector<std::string>{"secret"});
}

TEST_F(DaemonRightsTest, AFileSentWithoutItsModeIsForItsOwnerAlone) {
  StartDaemon();
  const std::string file = WriteFile("a.bin", 1000);
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  const auto push = [&](const std::string& name, const std::string& mode) {
    const OpenedFd opened(file, O_RDONLY);
    const RawClient client(socket());
    (void)client.SendRequest("push", R"({"name": ")" + name + R"("})", 1);
    (void)client.SendJson(R"({"files": [{"path": "a.bin")" + mode + "}]}", {opened.fd});
    return client.Answer().Code();
  };
  ASSERT_EQ(push("unsaid", ""), "");
  ASSERT_EQ(push("closed", R"(, "mode": 448)"), "");
  ASSERT_EQ(push("open", R"(, "mode": 493)"), "");
  EXPECT_EQ(push("wrong", R"(, "mode": 4096)"), "invalid_argument");
  EXPECT_EQ(push("wrong", R"(, "mode": "0644")"), "invalid_argument");
  EXPECT_EQ(CallAs(kStranger, {}, "show", R"({"name": "unsaid"})", "not_found"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "show", R"({"name": "closed"})", "not_found"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "show", R"({"name": "open"})", ""), 0);
}

TEST_F(DaemonRightsTest, FilesThatMayNotBeReadAreInNoAnswer) {
  StartDaemon();
  const std::string open_file = WriteFile("a.bin", 1000, 1), closed_file = WriteFile("b.bin", 1000, 2);
  const OpenedFd first(open_file, O_RDONLY), second(closed_file, O_RDONLY);
  ASSERT_EQ(fchmod(first.fd, 0644), 0);
  ASSERT_EQ(fchmod(second.fd, 0600), 0);
  const RawClient client(socket());
  client.SendPush("m", {{"open", first.fd}, {"closed/key", second.fd}});
  ASSERT_EQ(client.Answer().Code(), "");
  const auto as_stranger = [&](const std::string& request, const std::string& parameters, const auto& expected) {
    return AsUser(kStranger, kStranger, {}, [&] {
      const Reply reply = Call(request, parameters);
      return expected(reply) && reply.json().find("key") == std::string::npos ? 0 : 1;
    });
  };
  EXPECT_EQ(as_stranger("show", R"({"name": "m"})",
                        [](const Reply& reply) {
                          return reply.SizeOf("/result/files") == 1 && reply.At("/result/files/0/path") == "open" &&
                                 reply.At("/result/unreadable_files") == "1";
                        }),
            0);
  EXPECT_EQ(as_stranger("export", R"({"name": "m", "dir": "/x"})",
                        [](const Reply& reply) { return reply.Code() == "permission_denied"; }),
            0);
  EXPECT_EQ(Call("show", R"({"name": "m"})").SizeOf("/result/files"), 2u) << "root sees all";
}

TEST_F(DaemonRightsTest, MembersOfTheGroupPushAndOwnWhatTheyPushed) {
  const group* const some_group = getgrgid(100);
  if (some_group == nullptr) GTEST_SKIP() << "no group 100 here";
  StartDaemon({.config = std::string("group = \"") + some_group->gr_name + "\""});
  const std::string file = WriteFile("a.bin", 1000);
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  EXPECT_EQ(PushAs(kStranger, {7, 100}, "mine", file, ""), 0) << "by a supplementary group";
  EXPECT_EQ(AsUser(kStranger + 1, 100, {}, [&] { return Push("other", file).Code() == "" ? 0 : 1; }), 0)
      << "by the primary group";
  // Who may push may not change what belongs to others.
  EXPECT_EQ(PushAs(kStranger + 1, {100}, "mine", file, "permission_denied", R"({"update": true})"), 0);
  EXPECT_EQ(CallAs(kStranger + 1, {100}, "rm", R"({"name": "mine"})", "permission_denied"), 0);
  EXPECT_EQ(PushAs(kStranger, {100}, "mine", file, "", R"({"update": true})"), 0);
  EXPECT_EQ(CallAs(kStranger, {}, "rm", R"({"name": "mine"})", ""), 0) << "the owner";
  EXPECT_EQ(Call("rm", R"({"name": "other"})").Code(), "") << "root";
}

TEST_F(DaemonRightsTest, ABaseIsNamedByWhoMayReadAllOfIt) {
  const group* const some_group = getgrgid(100);
  if (some_group == nullptr) GTEST_SKIP() << "no group 100 here";
  StartDaemon({.config = std::string("group = \"") + some_group->gr_name + "\""});
  const OpenedFd readme(WriteFile("a.bin", 1000, 1), O_RDONLY), weights(WriteFile("b.bin", 1000, 2), O_RDONLY);
  ASSERT_EQ(fchmod(readme.fd, 0644), 0);
  ASSERT_EQ(fchmod(weights.fd, 0600), 0);
  const auto push = [&](const std::string& name) {
    const RawClient client(socket());
    client.SendPush(name, {{"README", readme.fd}, {"weights", weights.fd}});
    return client.Answer().Code();
  };
  ASSERT_EQ(push("part"), "");
  ASSERT_EQ(fchmod(weights.fd, 0644), 0);
  ASSERT_EQ(push("whole"), "");
  const std::string file = WriteFile("c.bin", 1000, 3);
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  EXPECT_EQ(PushAs(kStranger, {100}, "n", file, "permission_denied", R"({"base": "part"})"), 0);
  EXPECT_EQ(PushAs(kStranger, {100}, "n", file, "", R"({"base": "whole"})"), 0);
}

TEST_F(DaemonRightsTest, OneUserCannotTakeAllConnections) {
  StartDaemon({.config = "max_clients = 8"});
  EXPECT_EQ(AsUser(kStranger, kStranger, {},
                   [&] {
                     std::vector<std::unique_ptr<RawClient>> held;
                     for (int i = 0; i < 4; ++i) held.push_back(std::make_unique<RawClient>(socket()));
                     const RawClient fifth(socket());
                     return fifth.Next().Code() == "busy" ? 0 : 1;
                   }),
            0);
  EXPECT_EQ(Call("ls").Code(), "");
}

}  // namespace
}  // namespace modelstore
