#include "daemon/service/metrics_server.h"

#include <arpa/inet.h>
#include <httplib.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "codec/support/log.h"

namespace modelstore {
namespace {

constexpr size_t kWorkers = 2;
constexpr size_t kMaxRequestBytes = 4096;
constexpr auto kClientTime = std::chrono::seconds(5);  // to ask and to take the answer

struct Address {
  sockaddr_storage bytes{};
  socklen_t length = 0;
  std::string path;  // of a Unix socket

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&bytes); }
};

Status WrongAddress(const std::string& text) {
  return InvalidArgument("metrics: '" + text +
                         "' is not a place on this machine; expected an absolute path, \"127.0.0.1:PORT\" or "
                         "\"[::1]:PORT\"");
}

Result<Address> ParseAddress(const std::string& text) {
  Address address;
  if (text.starts_with('/')) {
    sockaddr_un unix_address{};
    if (text.size() >= sizeof(unix_address.sun_path))
      return InvalidArgument("metrics: the path " + text + " is longer than a socket's may be (" +
                             std::to_string(sizeof(unix_address.sun_path) - 1) + " bytes)");
    unix_address.sun_family = AF_UNIX;
    std::memcpy(unix_address.sun_path, text.data(), text.size());
    std::memcpy(&address.bytes, &unix_address, sizeof(unix_address));
    address.length = sizeof(unix_address);
    address.path = text;
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return WrongAddress(text);
  uint16_t port = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + colon + 1, end, port);
  if (parsed.ec != std::errc() || parsed.ptr != end) return WrongAddress(text);
  const std::string host = text.substr(0, colon);
  if (host == "[::1]") {
    sockaddr_in6 ip{};
    ip.sin6_family = AF_INET6;
    ip.sin6_port = htons(port);
    ip.sin6_addr = in6addr_loopback;
    std::memcpy(&address.bytes, &ip, sizeof(ip));
    address.length = sizeof(ip);
    return address;
  }
  sockaddr_in ip{};
  ip.sin_family = AF_INET;
  ip.sin_port = htons(port);
  // All of 127.0.0.0/8, nothing by name: a resolver may say anything.
  if (inet_pton(AF_INET, host.c_str(), &ip.sin_addr) != 1 || ntohl(ip.sin_addr.s_addr) >> 24 != 127)
    return WrongAddress(text);
  std::memcpy(&address.bytes, &ip, sizeof(ip));
  address.length = sizeof(ip);
  return address;
}

// Removes the socket that a killed daemon left.
Status RemoveStale(Address& address) {
  struct stat found;
  if (::lstat(address.path.c_str(), &found) != 0) return OkStatus();
  if (!S_ISSOCK(found.st_mode)) return Busy("metrics: " + address.path + " exists and is not a socket; remove it");
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return StatusFromErrno(errno, "metrics: creating a socket");
  const bool alive = ::connect(probe, address.get(), address.length) == 0 || errno != ECONNREFUSED;
  ::close(probe);
  if (alive) return Busy("metrics: another process listens on " + address.path);
  ::unlink(address.path.c_str());
  return OkStatus();
}

Result<int> Listen(Address& address, const std::string& text) {
  if (!address.path.empty()) RETURN_IF_ERROR(RemoveStale(address));
  const int fd = ::socket(address.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return StatusFromErrno(errno, "metrics: creating a socket");
  const int on = 1;
  if (address.path.empty()) ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // The folder says who may scrape.
  if (::bind(fd, address.get(), address.length) != 0 ||
      (!address.path.empty() && ::chmod(address.path.c_str(), 0666) != 0) || ::listen(fd, SOMAXCONN) != 0) {
    const int error = errno;
    ::close(fd);
    if (error == EADDRINUSE) return Busy("metrics: another process listens on " + text);
    return StatusFromErrno(error, "metrics: listening on " + text);
  }
  return fd;
}

// A client's bytes, until a deadline for all of them: httplib's own streams allow a time for each byte.
class ClientStream final : public httplib::Stream {
 public:
  explicit ClientStream(int fd) : fd_(fd) {}
  bool is_readable() const override { return next_ < have_ || Await(POLLIN); }
  bool is_writable() const override { return Await(POLLOUT); }
  ssize_t read(char* into, size_t size) override {
    if (next_ == have_) {
      if (!Await(POLLIN)) return -1;
      const ssize_t got = ::recv(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
      if (got <= 0) return got;
      next_ = 0;
      have_ = static_cast<size_t>(got);
    }
    const size_t taken = std::min(size, have_ - next_);
    std::memcpy(into, buffer_.data() + next_, taken);
    next_ += taken;
    return static_cast<ssize_t>(taken);
  }
  ssize_t write(const char* from, size_t size) override {
    // All of it: httplib does not look at how much was written.
    for (size_t done = 0; done < size;) {
      if (!Await(POLLOUT)) return -1;
      const ssize_t sent = ::send(fd_, from + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno != EAGAIN && errno != EINTR) return -1;
      done += static_cast<size_t>(std::max<ssize_t>(sent, 0));
    }
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return fd_; }

 private:
  bool Await(short events) const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
    pollfd polled{fd_, events, 0};
    return ::poll(&polled, 1, static_cast<int>(std::max<int64_t>(left.count(), 0))) > 0;
  }

  const int fd_;
  const std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::now() + kClientTime;
  std::array<char, 1024> buffer_{};
  size_t next_ = 0, have_ = 0;
};

// httplib 0.11 binds to names and ports only; it serves any socket that listens.
class HttpServer : public httplib::Server {
 public:
  void Adopt(int fd) { svr_sock_ = fd; }

  // Unlike stop() it waits for no client.
  void CutAndStop() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      for (const int fd : clients_) ::shutdown(fd, SHUT_RDWR);
    }
    stop();
  }

 private:
  bool process_and_close_socket(socket_t fd) override {
    bool served = false;
    if (Enter(fd)) {
      bool closed = false;
      ClientStream stream(fd);
      served = process_request(stream, /*close_connection=*/true, closed, nullptr);
    }
    const std::lock_guard lock(mutex_);
    clients_.erase(fd);
    ::shutdown(fd, SHUT_RDWR);
    ::close(fd);
    return served;
  }
  bool Enter(int fd) {
    const std::lock_guard lock(mutex_);
    if (!ending_) clients_.insert(fd);
    return !ending_;
  }

  std::mutex mutex_;
  std::set<int> clients_;  // being served
  bool ending_ = false;
};

}  // namespace

struct MetricsServer::Impl {
  HttpServer http;
  std::thread thread;
  std::atomic<bool> ended{false};
  std::string address, path;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                            std::function<std::string()> text) {
  ASSIGN_OR_RETURN(Address parsed, ParseAddress(address));
  ASSIGN_OR_RETURN(const int fd, Listen(parsed, address));
  auto impl = std::make_unique<Impl>();
  impl->path = parsed.path;
  impl->address = address;
  if (parsed.path.empty() && ::getsockname(fd, parsed.get(), &parsed.length) == 0) {
    // The port is at the same place in both families.
    const uint16_t port = ntohs(reinterpret_cast<const sockaddr_in*>(&parsed.bytes)->sin_port);
    impl->address = address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  }

  HttpServer& http = impl->http;
  http.Adopt(fd);
  http.new_task_queue = [] { return new httplib::ThreadPool(kWorkers); };
  http.set_payload_max_length(kMaxRequestBytes);
  http.Get("/metrics", [text = std::move(text)](const httplib::Request&, httplib::Response& response) {
    response.set_content(text(), "text/plain; version=0.0.4; charset=utf-8");
  });

  // Signals belong to the program's own threads; one would end the loop.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl->thread = std::thread([raw = impl.get()] {
    try {
      raw->http.listen_after_bind();
    } catch (const std::exception& error) {  // no thread or memory for its workers
      Log(LogLevel::kError, "the metrics cannot be served", {{"address", raw->address}, {"reason", error.what()}});
    }
    raw->ended.store(true);
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  while (!http.is_running() && !impl->ended.load()) std::this_thread::yield();  // stop() before that is lost
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::~MetricsServer() {
  impl_->http.CutAndStop();
  impl_->thread.join();
  if (!impl_->path.empty()) ::unlink(impl_->path.c_str());
}

const std::string& MetricsServer::address() const { return impl_->address; }

}  // namespace modelstore
