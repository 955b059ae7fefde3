#include "daemon/service/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "daemon/service/metrics_server.h"

namespace modelstore {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Series -> value of Prometheus' text format; fails on a line that is none.
std::map<std::string, double> Parse(const std::string& text) {
  std::map<std::string, double> values;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.starts_with("# HELP ") || line.starts_with("# TYPE ")) continue;
    const size_t blank = line.rfind(' ');
    char* end = nullptr;
    const double value = std::strtod(line.c_str() + blank + 1, &end);
    EXPECT_TRUE(blank != std::string::npos && *end == '\0') << line;
    EXPECT_TRUE(values.emplace(line.substr(0, blank), value).second) << line << ": twice";
  }
  return values;
}

TEST(Metrics, SaysWhatWasCounted) {
  MetricsSample sample;
  ServerCounters counters;
  counters.Connected();
  counters.Served("push", StatusCode::kOk, 2.5, 10);
  counters.Served("push", StatusCode::kOk, 0.5, 10);
  counters.Served("push", StatusCode::kPermissionDenied, 0.25, 10);
  counters.Pushed(1000, 100);
  counters.Pushed(24, 1);
  sample.server = counters.counts();
  sample.models = 3;
  sample.reading.hits = 7;
  sample.gpu.kind = GpuState::Kind::kUsed;
  sample.gpu.batches = 12;
  sample.gpu.failed_batches = 1;
  sample.mount.read_bytes = 1ull << 40;
  const std::map<std::string, double> values = Parse(MetricsText(sample));
  EXPECT_EQ(values.at(R"(modelstore_requests_total{request="push",code="ok"})"), 2);
  EXPECT_EQ(values.at(R"(modelstore_requests_total{request="push",code="permission_denied"})"), 1);
  EXPECT_EQ(values.at(R"(modelstore_request_seconds_total{request="push"})"), 3.25);
  EXPECT_EQ(values.at("modelstore_pushed_bytes_total"), 1024);
  EXPECT_EQ(values.at("modelstore_stored_bytes_total"), 101);
  EXPECT_EQ(values.at("modelstore_sent_bytes_total"), 30);
  EXPECT_EQ(values.at("modelstore_clients"), 1);
  EXPECT_EQ(values.at("modelstore_gpu_used"), 1);
  EXPECT_EQ(values.at("modelstore_gpu_batches_total"), 12);
  EXPECT_EQ(values.at("modelstore_gpu_failed_batches_total"), 1);
  EXPECT_EQ(values.at("modelstore_models"), 3);
  EXPECT_EQ(values.at("modelstore_cache_hits_total"), 7);
  EXPECT_EQ(values.at("modelstore_mount_read_bytes_total"), 1ull << 40);
  EXPECT_GT(values.at("modelstore_memory_resident_bytes"), 0);
  EXPECT_THAT(values.lower_bound("modelstore_build_info")->first, StartsWith("modelstore_build_info{version=\""));
}

TEST(Metrics, EverySeriesIsInTheDocumentAndNothingElse) {
  std::ifstream file(MODELSTORE_SOURCE_DIR "/docs/metrics.md");
  std::set<std::string> documented, served;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("| `modelstore_")) documented.insert(line.substr(3, line.find('`', 3) - 3));
  ServerCounters counters;
  counters.Served("push", StatusCode::kOk, 0, 0);
  MetricsSample sample;
  sample.server = counters.counts();
  for (const auto& [series, value] : Parse(MetricsText(sample))) served.insert(series.substr(0, series.find('{')));
  EXPECT_EQ(served, documented);
}

class MetricsServerTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/modelstore-metrics.XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static int Connect(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  static std::string ReadAll(int fd) {
    std::string answer;
    char buffer[4096];
    for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, got);
    return answer;
  }
  // What a server answers to `request`; closes `fd`.
  static std::string Ask(int fd, const std::string& request) {
    EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
    const std::string answer = ReadAll(fd);
    close(fd);
    return answer;
  }
  static std::string AskUnix(const std::string& path, const std::string& request) {
    return Ask(Connect(path), request);
  }
  static std::string Get(const std::string& path) {
    return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  }

  std::string folder_;
};

TEST_F(MetricsServerTest, AnswersOnAUnixSocketThatOthersMayOpen) {
  const std::string path = folder_ + "/metrics.sock";
  auto server = MetricsServer::Start(path, [] { return std::string("modelstore_models 3\n"); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0666u);
  for (int i = 0; i < 3; ++i) {
    const std::string answer = AskUnix(path, Get("/metrics"));
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
    EXPECT_THAT(answer, HasSubstr("text/plain; version=0.0.4"));
    EXPECT_THAT(answer, HasSubstr("\r\n\r\nmodelstore_models 3\n"));
  }
  EXPECT_THAT(AskUnix(path, Get("/")), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(AskUnix(path, Get("/metrics?debug=1")), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(AskUnix(path, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), StartsWith("HTTP/1.1 405"));
  EXPECT_TRUE(AskUnix(path, "HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
  EXPECT_THAT(AskUnix(path, "GET /metrics\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(AskUnix(path, "\x01\x02\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  (*server).reset();
  EXPECT_NE(stat(path.c_str(), &info), 0);
}

TEST_F(MetricsServerTest, AnswersARequestThatComesInPieces) {
  const std::string path = folder_ + "/metrics.sock", request = Get("/metrics");
  auto server = MetricsServer::Start(path, [] { return std::string("modelstore_models 3\n"); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  const int fd = Connect(path);
  for (const char byte : request) ASSERT_EQ(send(fd, &byte, 1, MSG_NOSIGNAL), 1);
  EXPECT_TRUE(ReadAll(fd).ends_with("\r\n\r\nmodelstore_models 3\n"));
  close(fd);
}

TEST_F(MetricsServerTest, RefusesARequestThatIsTooLong) {
  const std::string path = folder_ + "/metrics.sock";
  auto server = MetricsServer::Start(path, [] { return std::string(); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  EXPECT_THAT(AskUnix(path, "GET /metrics HTTP/1.1\r\nX: " + std::string(100000, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431"));
}

TEST_F(MetricsServerTest, MoreClientsThanItServesAtOnceAreAllAnswered) {
  const std::string path = folder_ + "/metrics.sock";
  auto server = MetricsServer::Start(path, [] { return std::string(); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  std::vector<int> clients;
  for (int i = 0; i < 100; ++i) clients.push_back(Connect(path));
  for (const int fd : clients) ASSERT_GT(send(fd, Get("/metrics").data(), Get("/metrics").size(), MSG_NOSIGNAL), 0);
  for (const int fd : clients) {
    EXPECT_THAT(ReadAll(fd), StartsWith("HTTP/1.1 200"));
    close(fd);
  }
}

TEST_F(MetricsServerTest, SendsMoreThanASocketTakesAtOnce) {
  const std::string path = folder_ + "/metrics.sock", text(4 << 20, '#');
  auto server = MetricsServer::Start(path, [&] { return text; });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  EXPECT_TRUE(AskUnix(path, Get("/metrics")).ends_with("\r\n\r\n" + text));
}

TEST_F(MetricsServerTest, ClientsThatDripTheirRequestsHoldUpNeitherOthersNorTheEnd) {
  const std::string path = folder_ + "/metrics.sock";
  auto server = MetricsServer::Start(path, [] { return std::string(); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  std::vector<int> drips;
  for (int i = 0; i < 8; ++i) drips.push_back(Connect(path));
  // One is being served when its first byte is taken.
  ASSERT_EQ(send(drips[0], "G", 1, MSG_NOSIGNAL), 1);
  for (int waiting = 1; waiting > 0; std::this_thread::yield()) ASSERT_EQ(ioctl(drips[0], SIOCOUTQ, &waiting), 0);
  std::atomic<bool> ended{false};
  std::thread dripping([&] {
    while (!ended) {
      for (const int fd : drips) (void)send(fd, "GET ", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  EXPECT_THAT(AskUnix(path, Get("/metrics")), StartsWith("HTTP/1.1 200"));  // they hold up nobody else
  (*server).reset();
  ended = true;
  dripping.join();
  for (const int fd : drips) close(fd);
}

TEST_F(MetricsServerTest, AnswersOnALoopbackPort) {
  auto server = MetricsServer::Start("127.0.0.1:0", [] { return std::string("modelstore_models 3\n"); });
  ASSERT_TRUE(server.ok()) << server.status().ToString();
  ASSERT_THAT((*server)->address(), StartsWith("127.0.0.1:"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(std::stoi((*server)->address().substr(10))));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_THAT(Ask(fd, Get("/metrics")), HasSubstr("modelstore_models 3\n"));
  EXPECT_EQ(MetricsServer::Start((*server)->address(), nullptr).status().code(), StatusCode::kBusy);
}

TEST_F(MetricsServerTest, RefusesEverythingThatIsNotOnThisMachine) {
  for (const char* address : {"0.0.0.0:9105", "192.0.2.1:9105", "[::]:9105", "localhost:9105", ":9105", "9105",
                              "metrics.sock", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:1x", ""}) {
    const Status status = MetricsServer::Start(address, nullptr).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("'") + address + "'"));
  }
  EXPECT_EQ(MetricsServer::Start("/" + std::string(200, 'x'), nullptr).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(MetricsServerTest, TakesOverADeadSocketAndNothingElse) {
  const std::string path = folder_ + "/metrics.sock";
  auto first = MetricsServer::Start(path, [] { return std::string(); });
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(MetricsServer::Start(path, nullptr).status().code(), StatusCode::kBusy);
  // As a killed daemon leaves it.
  const std::string dead = folder_ + "/dead.sock";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, dead.c_str(), sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
  EXPECT_TRUE(MetricsServer::Start(dead, [] { return std::string(); }).ok());
  std::ofstream(folder_ + "/file") << "mine";
  EXPECT_EQ(MetricsServer::Start(folder_ + "/file", nullptr).status().code(), StatusCode::kBusy);
  EXPECT_EQ(std::filesystem::file_size(folder_ + "/file"), 4u);
}

}  // namespace
}  // namespace modelstore
