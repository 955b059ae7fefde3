#include "daemon/service/metrics_server.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/thread.h"
#include "daemon/service/http_answer.h"

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxClients = 32;                     // others wait in the kernel's queue
constexpr auto kClientTime = std::chrono::seconds(5);  // to ask and to take the answer
constexpr auto kPause = std::chrono::milliseconds(100);

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

struct Client {
  int fd = -1;
  Clock::time_point deadline;
  std::string received, answer;
  size_t sent = 0;

  bool answering() const { return sent < answer.size(); }
};

// Reads what there is. False: the client has gone or has failed.
bool Receive(int fd, std::string* into) {
  std::array<char, 1024> buffer;
  const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (into != nullptr) into->append(buffer.data(), static_cast<size_t>(got));
  return got > 0;
}

// One thread serves all clients, so that no client can hold up another one.
class HttpLoop {
 public:
  HttpLoop(int listener, int stop, std::function<std::string()> text)
      : listener_(listener), stop_(stop), text_(std::move(text)) {
    clients_.reserve(kMaxClients);
    polled_.reserve(kFirstClient + kMaxClients);
  }
  ~HttpLoop() {
    for (const Client& client : clients_) ::close(client.fd);
  }
  HttpLoop(const HttpLoop&) = delete;
  HttpLoop& operator=(const HttpLoop&) = delete;

  // Until `stop` becomes readable.
  void Run() {
    while (Wait()) {
      const Clock::time_point now = Clock::now();
      for (size_t i = clients_.size(); i-- > 0;) {
        const bool is_ready = polled_[kFirstClient + i].revents != 0;
        if (now < clients_[i].deadline && (!is_ready || Serve(clients_[i]))) continue;
        ::close(clients_[i].fd);
        clients_.erase(clients_.begin() + static_cast<ptrdiff_t>(i));
      }
      if (polled_[kListener].revents != 0) Accept();
    }
  }

 private:
  enum : size_t { kStop, kListener, kFirstClient };

  // Waits for something to do; false when it is the end.
  bool Wait() {
    polled_.assign(kFirstClient + clients_.size(), {});
    polled_[kStop] = {stop_, POLLIN, 0};
    // A negative descriptor is not polled. Whoever comes while there are too many waits in the listener's queue.
    polled_[kListener] = {clients_.size() < kMaxClients && !pause_accepting_ ? listener_ : -1, POLLIN, 0};
    std::optional<Clock::time_point> until;
    if (pause_accepting_) until = Clock::now() + kPause;
    for (size_t i = 0; i < clients_.size(); ++i) {
      polled_[kFirstClient + i] = {clients_[i].fd, static_cast<short>(clients_[i].answering() ? POLLOUT : POLLIN), 0};
      until = std::min(until.value_or(clients_[i].deadline), clients_[i].deadline);
    }
    pause_accepting_ = false;
    int timeout = -1;
    if (until) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until - Clock::now());
      timeout = static_cast<int>(std::max<int64_t>(left.count(), 0));
    }
    if (::poll(polled_.data(), polled_.size(), timeout) < 0 && errno != EINTR) return false;
    return polled_[kStop].revents == 0;
  }

  void Accept() {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      pause_accepting_ = errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;  // such as: no more descriptors
      return;
    }
    clients_.push_back({.fd = fd, .deadline = Clock::now() + kClientTime, .received = {}, .answer = {}});
  }

  // One step of a client whose descriptor is ready. False: it is to be closed.
  bool Serve(Client& client) {
    const Result<bool> goes_on = Guarded([&]() -> Result<bool> {
      if (!client.answer.empty()) return client.answering() ? Send(client) : Receive(client.fd, nullptr);
      if (!Receive(client.fd, &client.received)) return false;
      if (HttpHeadEnded(client.received)) client.answer = HttpAnswer(client.received, text_);
      return true;
    });
    if (!goes_on.ok()) Log(LogLevel::kError, "the metrics could not be served: there was no memory for the answer");
    return goes_on.ok() && *goes_on;
  }

  // What a client still sends after its answer is read and dropped until it closes: closing before that would reset
  // the connection and with it the answer.
  bool Send(Client& client) {
    const ssize_t sent =
        ::send(client.fd, client.answer.data() + client.sent, client.answer.size() - client.sent, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR;
    client.sent += static_cast<size_t>(sent);
    if (!client.answering()) ::shutdown(client.fd, SHUT_WR);
    return true;
  }

  const int listener_, stop_;
  const std::function<std::string()> text_;
  std::vector<Client> clients_;
  std::vector<pollfd> polled_;
  bool pause_accepting_ = false;
};

}  // namespace

struct MetricsServer::Impl {
  int listener = -1, stop = -1;
  std::string address, path;
  std::unique_ptr<HttpLoop> loop;
  Thread thread;

  ~Impl() {
    if (thread.joinable()) {
      ::eventfd_write(stop, 1);
      thread.Join();
    }
    loop.reset();
    if (stop >= 0) ::close(stop);
    if (listener >= 0) ::close(listener);
    if (!path.empty()) ::unlink(path.c_str());
  }
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                            std::function<std::string()> text) {
  ASSIGN_OR_RETURN(Address parsed, ParseAddress(address));
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->listener, Listen(parsed, address));
  impl->path = parsed.path;
  impl->address = address;
  if (parsed.path.empty() && ::getsockname(impl->listener, parsed.get(), &parsed.length) == 0) {
    // The port is at the same place in both families.
    const uint16_t port = ntohs(reinterpret_cast<const sockaddr_in*>(&parsed.bytes)->sin_port);
    impl->address = address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  }
  impl->stop = ::eventfd(0, EFD_CLOEXEC);
  if (impl->stop < 0) return StatusFromErrno(errno, "metrics: creating an event");

  impl->loop = std::make_unique<HttpLoop>(impl->listener, impl->stop, std::move(text));
  // Signals belong to the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Result<Thread> started = Thread::Start([loop = impl->loop.get()] { loop->Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!started.ok()) return started.status().WithContext("metrics");
  impl->thread = *std::move(started);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::~MetricsServer() = default;

const std::string& MetricsServer::address() const { return impl_->address; }

}  // namespace modelstore
