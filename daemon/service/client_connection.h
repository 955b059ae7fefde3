// One connection: who it is, its request, the job, the answer (layer: daemon/service).
//
// Run is called once, on the connection's own thread; Stop from any thread while the object lives. A second thread
// listens for the client while the job runs, so that a client that cancels or goes away ends its job.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "catalog/read/catalog.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"
#include "daemon/handlers/caller.h"
#include "daemon/handlers/handlers.h"
#include "daemon/service/answer_stream.h"
#include "daemon/service/client_request.h"
#include "daemon/service/counters.h"
#include "daemon/service/jobs.h"
#include "daemon/service/limits.h"
#include "daemon/service/passed_files.h"

namespace modelstore {

// How many push at once, and how many read whole models through the socket; the rest wait their turn. Pushes share
// their part of the memory budget (MemoryShares).
inline constexpr unsigned kConcurrentPushes = 4;
inline constexpr unsigned kConcurrentExports = 4;
// How many build a document of models at once: of a large store it takes many times its text.
inline constexpr unsigned kConcurrentDocuments = 4;
// How many requests are parsed at once, before anyone's rights are known.
inline constexpr unsigned kConcurrentParses = 4;
// Of a thread that serves a client. Handlers keep what is large on the heap.
inline constexpr size_t kThreadStackBytes = 1u << 20;

// What all connections share; outlives them.
struct ServerState {
  ServerState(Catalog& the_catalog, size_t passable_descriptors)
      : catalog(the_catalog), descriptors(passable_descriptors) {}

  Catalog& catalog;
  Status why_read_only;  // not OK: the answer to what would write
  std::vector<std::string> layer_names;
  std::string group;
  std::atomic<uint64_t> mount_device{0};  // 0: not mounted
  std::atomic<bool> log_reads{false};     // requests that change nothing are logged like others
  // Adds to the catalog's `status` what only the service knows.
  std::function<std::string(const std::string& document, const Caller& caller)> complete_status;

  JobTable jobs;
  ServerCounters counters;
  Gate pushes{kConcurrentPushes}, exports{kConcurrentExports}, documents{kConcurrentDocuments},
      parses{kConcurrentParses};
  DescriptorBudget descriptors;
};

class ClientConnection {
 public:
  // Takes `socket` (non-blocking) over.
  ClientConnection(int socket, ServerState* state);
  ~ClientConnection();
  ClientConnection(const ClientConnection&) = delete;
  ClientConnection& operator=(const ClientConnection&) = delete;

  void Run();
  // In place of Run: answers with `error`.
  void Refuse(const Status& error) { (void)answers_.SendError(error); }
  // The daemon stops: the job is cancelled, the client is told why.
  void Stop();
  // After Stop, from any thread: a client that does not take what is still to be said is not waited for.
  void CutIfStalled(std::chrono::nanoseconds limit) const { answers_.CutIfStalled(limit); }

 private:
  void Answer();
  Result<std::string> Serve();
  Result<ClientRequest> ReceiveRequest();
  // Of `count` files `held` are kept open; the others are asked for again when they are read.
  Result<SourceTree> ReceiveFiles(uint64_t count, size_t held);
  Result<std::string> RunHandler(const Handler& handler, const SourceTree* source, const SourceTree* moments);
  Result<std::string> RunInTurn(const Handler& handler, const SourceTree* source, const SourceTree* moments);
  Gate* GateOf(const Handler& handler) const;
  void Listen();
  Status TakeLaterFrame();
  void Cancel();
  void LogRequest(const Status& status, double seconds) const;

  const int socket_;
  ServerState& state_;
  AnswerStream answers_;
  PassedFiles passed_files_;
  JobControl job_;
  Caller caller_;
  ClientRequest request_;
  const Handler* handler_ = nullptr;
  Account account_;
  std::optional<JobTable::Entry> entry_;  // while the handler runs
  std::optional<Gate::Place> place_;      // while the handler runs; until a large document was sent
  std::atomic<bool> stopping_{false};
  Status said_;  // by the listening thread: what the client did that ended its job; read after that thread ended
};

}  // namespace modelstore
