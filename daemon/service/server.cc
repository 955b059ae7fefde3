#include "daemon/service/server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "codec/support/log.h"
#include "daemon/service/small_thread.h"

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
  const auto connection = std::make_shared<ClientConnection>(socket, &state_);
  Status status = Admit(connection.get(), uid);
  if (status.ok()) {
    Result<SmallThread> thread = SmallThread::Start(kThreadStackBytes, [this, connection, uid]() mutable {
      connection->Run();
      Leave(std::move(connection), uid);
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
  const bool unlimited = uid == 0 || uid == geteuid();
  const size_t share = std::max<size_t>(max_clients_ / 2, 1);
  if (!unlimited && by_user_[uid] >= share)
    return Busy("modelstored serves " + std::to_string(share) + " clients of user " + std::to_string(uid) +
                " already; try again later");
  connections_.insert(connection);
  ++by_user_[uid];
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
