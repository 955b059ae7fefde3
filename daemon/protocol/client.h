// The client's end of the daemon's socket (layer: daemon/protocol).
//
// One connection carries one request (docs/protocol.md). Stateless; thread-safe.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/write/export.h"
#include "catalog/write/push.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

struct DaemonCall {
  std::string_view request;             // "push", "ls", …
  std::string_view parameters;          // JSON object
  const SourceTree* source = nullptr;   // push: its files are opened here, with this process's rights, and sent
  const SourceTree* moments = nullptr;  // push, compact: one file, sent after those of the source
  ExportSink* sink = nullptr;           // export: called as the data arrives
  // Gets progress and warnings. Its cancellation is sent on; the answer to that is awaited for a second.
  JobControl* job = nullptr;
  // How long the daemon may say nothing, and take no connection; 0: for ever (a connection: 10 s).
  std::chrono::seconds patience{0};
};

// Calls the daemon and waits for its answer, a JSON document. Errors: Unavailable (no daemon listens there: says how to
// start one; it ended before it answered; it said nothing for too long), Busy (it takes no connection), Cancelled,
// Unsupported (the daemon speaks another version: says which), the daemon's own errors with their codes, the sink's
// errors.
Result<std::string> CallDaemon(const std::string& socket_path, const DaemonCall& call);

// Where a daemon's socket is looked for, in this order: the user's ($XDG_RUNTIME_DIR/modelstore/modelstore.sock) when a
// daemon listens there, else the system's.
std::string UserSocketPath();  // "" when there is no XDG_RUNTIME_DIR
inline constexpr std::string_view kSystemSocketPath = "/run/modelstore/modelstore.sock";
std::string FindDaemonSocket();

}  // namespace modelstore
