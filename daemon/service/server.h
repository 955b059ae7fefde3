// The connections of the daemon: a thread each, up to a number (layer: daemon/service).
//
// Thread-safe. Stop before destroying.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <set>

#include "codec/support/mutex.h"
#include "daemon/service/client_connection.h"

namespace modelstore {

class Server {
 public:
  // `state` outlives the server. A user who is neither root nor the daemon's own gets at most half of the connections.
  Server(ServerState* state, size_t max_clients) : state_(*state), max_clients_(max_clients) {}
  ~Server();  // Stop()

  // Takes a connected, non-blocking socket over; answers `busy` when there are too many.
  void Serve(int socket);
  // Takes no more, ends all jobs (they roll back) and waits for them.
  void Stop();

 private:
  Status Admit(ClientConnection* connection, uid_t uid);
  void LogRefusal(uid_t uid, const Status& status);
  void Leave(std::shared_ptr<ClientConnection> connection, uid_t uid);

  ServerState& state_;
  const size_t max_clients_;
  Mutex mutex_;
  CondVar left_;
  std::set<ClientConnection*> connections_ MS_GUARDED_BY(mutex_);
  std::map<uid_t, size_t> by_user_ MS_GUARDED_BY(mutex_);
  size_t threads_ MS_GUARDED_BY(mutex_) = 0;  // that may still use this object
  bool stopping_ MS_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point next_refusal_told_ MS_GUARDED_BY(mutex_);
  size_t refusals_untold_ MS_GUARDED_BY(mutex_) = 0;
};

}  // namespace modelstore
