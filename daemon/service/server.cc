#include "daemon/service/server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/thread.h"
#include "codec/support/user_namespace.h"

namespace modelstore {
namespace {

constexpr auto kStallAtStop = std::chrono::seconds(1);
constexpr auto kRefusalsToldEvery = std::chrono::seconds(1);

// Nobody's, so counted like any other user, when the kernel does not say.
uid_t UserOf(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) == 0 ? credentials.uid : ~uid_t{0};
}

}  // namespace

Server::~Server() { Stop(); }

void Server::Serve(int socket) {
  const uid_t uid = UserOf(socket);
  const Result<std::shared_ptr<ClientConnection>> made = Guarded([&]() -> Result<std::shared_ptr<ClientConnection>> {
    return std::make_shared<ClientConnection>(socket, &state_);
  });
  if (!made.ok()) {
    close(socket);
    Log(LogLevel::kError, "a client was sent away for lack of memory");
    return;
  }
  const std::shared_ptr<ClientConnection>& connection = *made;
  Status status = Guarded([&] { return Admit(connection.get(), uid); });
  if (status.ok()) {
    Result<Thread> thread = Guarded([&] {
      const auto serve = [this, connection, uid]() mutable {
        connection->Run();
        Leave(std::move(connection), uid);
      };
      return Thread::Start(serve, kThreadStackBytes);
    });
    if (thread.ok()) return thread->Detach();
    status = Busy(std::string(thread.status().message()));
    Leave(connection, uid);
  }
  state_.counters.Refused();
  LogRefusal(uid, status);
  connection->Refuse(status);
}

// A flood of clients must not become one of lines.
void Server::LogRefusal(uid_t uid, const Status& status) {
  size_t untold = 0;
  {
    const MutexLock lock(mutex_);
    ++refusals_untold_;
    const auto now = std::chrono::steady_clock::now();
    if (now < next_refusal_told_) return;
    next_refusal_told_ = now + kRefusalsToldEvery;
    untold = std::exchange(refusals_untold_, 0);
  }
  Log(LogLevel::kWarning, "client refused",
      {{"uid", std::to_string(uid)}, {"refused", std::to_string(untold)}, {"error", std::string(status.message())}});
}

Status Server::Admit(ClientConnection* connection, uid_t uid) {
  const MutexLock lock(mutex_);
  if (stopping_) return Busy("modelstored is stopping");
  if (connections_.size() >= max_clients_)
    return Busy("modelstored serves " + std::to_string(max_clients_) + " clients already; try again later");
  const bool unlimited = uid == 0 || UserNamespace::Own().SameUser(uid, geteuid());
  const size_t share = std::max<size_t>(max_clients_ / 2, 1);
  if (!unlimited && by_user_[uid] >= share)
    return Busy("modelstored serves " + std::to_string(share) + " clients of user " + std::to_string(uid) +
                " already; try again later");
  size_t& of_user = by_user_[uid];
  connections_.insert(connection);
  ++of_user;  // from here on nothing fails: Leave takes back what was counted
  ++threads_;
  state_.counters.Connected();
  return OkStatus();
}

void Server::Leave(std::shared_ptr<ClientConnection> connection, uid_t uid) {
  {
    const MutexLock lock(mutex_);
    connections_.erase(connection.get());
    if (--by_user_[uid] == 0) by_user_.erase(uid);
    state_.counters.Disconnected();
  }
  connection.reset();
  const MutexLock lock(mutex_);
  --threads_;
  left_.NotifyAll();
}

void Server::Stop() {
  MutexLock lock(mutex_);
  stopping_ = true;
  for (ClientConnection* const connection : connections_) connection->Stop();
  auto next_look = std::chrono::steady_clock::now() + kStallAtStop;
  while (threads_ != 0) {
    if (left_.WaitUntil(mutex_, next_look)) continue;
    for (const ClientConnection* const connection : connections_) connection->CutIfStalled(kStallAtStop);
    next_look = std::chrono::steady_clock::now() + kStallAtStop;
  }
}

}  // namespace modelstore
