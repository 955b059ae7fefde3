#include "tests/integration/daemon/daemon_fixture.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "fuse/mount_table.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr FrameLimits kAnswerLimits{.json_bytes = kMaxAnswerBytes, .data_bytes = kMaxDataBytes};

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  return address;
}

int Listening(const std::string& path) {
  fs::create_directories(fs::path(path).parent_path());
  unlink(path.c_str());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_un address = AddressOf(path);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 && listen(fd, 16) == 0) return fd;
  close(fd);
  return -1;
}

}  // namespace

bool Reply::Has(const std::string& key) const { return Json::parse(json_).contains(key); }

std::string Reply::At(const std::string& pointer) const {
  const Json json = Json::parse(json_);
  const Json::json_pointer at(pointer);
  if (!json.contains(at)) return "";
  return json[at].is_string() ? json[at].get<std::string>() : json[at].dump();
}

size_t Reply::SizeOf(const std::string& pointer) const {
  const Json json = Json::parse(json_);
  return json.value(Json::json_pointer(pointer), Json()).size();
}

std::string Reply::Code() const {
  if (Has("result")) return "";
  return Has("error") ? At("/error/code") : "closed";
}

std::ostream& operator<<(std::ostream& out, const Reply& reply) { return out << reply.json(); }

RawClient::RawClient(const std::string& socket_path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const sockaddr_un address = AddressOf(socket_path);
  if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) Close();
}

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::SendBytes(std::string_view bytes) const {
  // The daemon may have ended the connection already.
  (void)!send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

Status RawClient::SendJson(const std::string& text, std::vector<int> fds) const {
  return SendFrame(fd_, FrameKind::kJson, AsBytes(text), std::move(fds), kPatienceMs);
}

Status RawClient::SendRequest(const std::string& request, const std::string& parameters, uint64_t files) const {
  return SendJson(Json{
      {"protocol", kProtocolVersion},
      {"version", "test"},
      {"request", request},
      {"parameters", Json::parse(parameters)},
      {"files",
       files}}.dump());
}

void RawClient::SendPush(const std::string& name, const std::vector<std::pair<std::string, int>>& files,
                         const std::string& more) const {
  Json parameters = Json::parse(more);
  parameters["name"] = name;
  Json list = Json::array();
  std::vector<int> fds;
  for (const auto& [path, fd] : files) {
    list.push_back({{"path", path}, {"shown_as", "/shown/" + path}, {"mode", 0777}});
    fds.push_back(fd);
  }
  (void)SendRequest("push", parameters.dump(), files.size());
  if (!files.empty()) (void)SendJson(Json{{"files", list}}.dump(), fds);
}

Reply RawClient::Next() const {
  Result<WireFrame> frame = ReceiveFrame(fd_, kAnswerLimits, -1, kPatienceMs, kPatienceMs);
  if (!frame.ok()) return Reply(Json{{"closed", frame.status().message()}}.dump());
  if (frame->kind == FrameKind::kData) return Reply(Json{{"data", frame->payload.size()}}.dump());
  return Reply(frame->payload);
}

Reply RawClient::Until(const std::string& key) const {
  for (;;) {
    Reply frame = Next();
    for (const std::string& last : {key, std::string("result"), std::string("error"), std::string("closed")})
      if (frame.Has(last)) return frame;
  }
}

Reply RawClient::Answer() const { return Until("result"); }

void RawClient::AwaitStoring() const {
  Reply frame("{}");
  do {
    frame = Until("progress");
    ASSERT_TRUE(frame.Has("progress")) << frame;
  } while (frame.At("/progress/phase") != "storing");
}

void DaemonTest::SetUp() {
  std::string pattern = fs::temp_directory_path().string() + "/modelstored.XXXXXX";
  ASSERT_NE(mkdtemp(pattern.data()), nullptr) << std::strerror(errno);
  root_ = fs::canonical(pattern);
  ASSERT_EQ(chmod(root_.c_str(), 0755), 0);  // other users look through it
  fs::create_directories(root_ + "/files");
  const int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  can_mount_ = fuse >= 0 && geteuid() == 0;
  if (fuse >= 0) close(fuse);
}

void DaemonTest::TearDown() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    (void)WaitForDaemon();
  }
  if (notify_ >= 0) close(notify_);
  if (root_.empty()) return;
  while (can_mount_ && umount2(mountpoint().c_str(), MNT_DETACH) == 0) {
  }
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

void DaemonTest::SpawnDaemon(const DaemonOptions& options) {
  std::ofstream(root_ + "/config.toml") << options.config << "\n";
  const std::string notify_path = root_ + "/notify";
  unlink(notify_path.c_str());
  if (notify_ >= 0) close(notify_);
  notify_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const sockaddr_un address = AddressOf(notify_path);
  ASSERT_EQ(bind(notify_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << std::strerror(errno);
  ASSERT_EQ(chmod(notify_path.c_str(), 0666), 0);
  const std::string config = root_ + "/config.toml", mount = can_mount_ && options.uid == 0 ? mountpoint() : "";
  const std::string store_dir = store(), socket_path = options.activate ? root_ + "/not-made" : socket();
  const int listening = options.activate ? Listening(socket()) : -1;
  pid_ = fork();
  ASSERT_GE(pid_, 0);
  if (pid_ != 0) {
    if (listening >= 0) close(listening);
    return;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setenv("NOTIFY_SOCKET", notify_path.c_str(), 1);
  if (options.watchdog_usec != 0) setenv("WATCHDOG_USEC", std::to_string(options.watchdog_usec).c_str(), 1);
  if (listening >= 0) {
    if (dup2(listening, 3) != 3 || fcntl(3, F_SETFD, 0) != 0) _exit(99);
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  }
  if (options.max_open_files != 0) {
    const rlimit limit{options.max_open_files, options.max_open_files};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(99);
  }
  if (options.max_threads != 0) {
    const rlimit limit{options.max_threads, options.max_threads};
    if (setrlimit(RLIMIT_NPROC, &limit) != 0) _exit(99);
  }
  if (options.uid != 0 && (setgroups(0, nullptr) != 0 || setgid(options.uid) != 0 || setuid(options.uid) != 0))
    _exit(99);
  for (int fd = 0; options.without_streams && fd <= STDERR_FILENO; ++fd) close(fd);
  execl(MODELSTORED, MODELSTORED, "--config", config.c_str(), "--store", store_dir.c_str(), "--mount", mount.c_str(),
        "--socket", socket_path.c_str(), nullptr);
  _exit(99);
}

void DaemonTest::StartDaemon(const DaemonOptions& options) {
  SpawnDaemon(options);
  AwaitNotification("READY=1");
}

bool DaemonTest::TryToStartDaemon(const DaemonOptions& options) {
  SpawnDaemon(options);
  const auto deadline = Clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (Clock::now() < deadline) {
    siginfo_t ended{};
    if (waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid == pid_)
      return false;
    pollfd polled{notify_, POLLIN, 0};
    if (poll(&polled, 1, 50) <= 0) continue;
    char text[512];
    const ssize_t n = recv(notify_, text, sizeof text, 0);
    if (n > 0 && std::string_view(text, static_cast<size_t>(n)).find("READY=1") != std::string_view::npos) return true;
  }
  ADD_FAILURE() << "the daemon neither starts nor ends";
  return false;
}

void DaemonTest::AwaitNotification(const std::string& expected) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (Clock::now() < deadline) {
    pollfd polled{notify_, POLLIN, 0};
    if (poll(&polled, 1, 50) > 0) {
      char text[512];
      const ssize_t n = recv(notify_, text, sizeof text, 0);
      if (n > 0 && std::string_view(text, static_cast<size_t>(n)).find(expected) != std::string_view::npos) return;
    }
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      FAIL() << "the daemon ended before it said " << expected << ": " << status;
    }
  }
  FAIL() << "the daemon does not say " << expected;
}

void DaemonTest::Signal(int number) const { ASSERT_EQ(kill(pid_, number), 0); }

int DaemonTest::WaitForDaemon() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

Reply DaemonTest::Call(const std::string& request, const std::string& parameters) const {
  const RawClient client(socket());
  if (!client.connected()) return Reply(R"({"closed": "not connected"})");
  (void)client.SendRequest(request, parameters);
  return client.Answer();
}

Reply DaemonTest::Push(const std::string& name, const std::string& file, const std::string& more) const {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  const RawClient client(socket());
  client.SendPush(name, {{fs::path(file).filename().string(), fd}}, more);
  close(fd);
  return client.Answer();
}

std::vector<std::string> DaemonTest::ModelNames() const {
  std::vector<std::string> names;
  const Reply answer = Call("ls");
  for (size_t i = 0; i < answer.SizeOf("/result/models"); ++i)
    names.push_back(answer.At("/result/models/" + std::to_string(i) + "/name"));
  return names;
}

void DaemonTest::AwaitIdle() const {
  const auto deadline = Clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (Clock::now() < deadline) {
    if (Call("status").SizeOf("/result/jobs") == 1) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  FAIL() << "the daemon still works: " << Call("status");
}

void DaemonTest::ExpectWhole(const std::vector<std::string>& models) const {
  EXPECT_EQ(ModelNames(), models);
  EXPECT_EQ(Call("verify").At("/result/failed"), "[]");
  EXPECT_EQ(Call("prune", R"({"dry_run": true})").At("/result/freed_bytes"), "0");
}

std::string DaemonTest::WriteFile(const std::string& name, size_t bytes, uint64_t seed) const {
  const std::string path = root_ + "/files/" + name;
  std::mt19937_64 random(seed);
  std::string content(bytes, '\0');
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t value = random();
    std::memcpy(content.data() + i, &value, std::min<size_t>(8, bytes - i));
  }
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string DaemonTest::ReadFile(const std::string& path) {
  std::string bytes;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return bytes;
  char piece[1 << 16];
  for (ssize_t n = 0; (n = read(fd, piece, sizeof piece)) > 0;) bytes.append(piece, static_cast<size_t>(n));
  close(fd);
  return bytes;
}

int AsUser(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    if (setgroups(groups.size(), groups.data()) != 0 || setgid(gid) != 0 || setuid(uid) != 0) _exit(99);
    _exit(body());
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace modelstore
