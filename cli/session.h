// Session: one run of the program (layer: cli). It sends requests through one of two doors (to handlers over a store
// that it opens in this process, or to a daemon) with progress and Ctrl-C, and knows what the terminal can show.
//
// Not thread-safe; progress comes from any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/export.h"
#include "catalog/write/push.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "cli/format.h"
#include "codec/support/job_control.h"

namespace modelstore {

// A request's parameters by name.
using ParameterValue = std::variant<std::string, bool, double, std::vector<std::string>>;
using ParameterList = std::vector<std::pair<std::string, ParameterValue>>;

// What goes with a request beside its parameters.
struct Attachments {
  const SourceTree* source = nullptr;   // push
  const SourceTree* moments = nullptr;  // push, compact
  ExportSink* sink = nullptr;           // export
};

inline constexpr uint64_t kDefaultMemoryBudgetBytes = 2ull << 30;

class Session {
 public:
  explicit Session(const GlobalOptions& options);

  const GlobalOptions& options() const { return options_; }
  const Style& style() const { return style_; }  // of stdout

  // Sets the budget from --memory-budget, if given. Errors: InvalidArgument.
  Status UseMemoryBudget(const Arguments& arguments);
  // False: the store is opened by this process.
  bool through_daemon() const { return options_.store.empty(); }
  // Opens the store once. Errors: Unavailable (no store named or none there), Locked, …
  Result<Catalog*> Open(bool writes, bool creates);
  // Opens it for a mount: locked, unless the folder may only be read, which is said. Errors: as Open's.
  Result<Catalog*> OpenToServe();
  // Has a request answered: in process by its handler, on the store opened as the handler demands, or by the daemon.
  // SIGINT and SIGTERM cancel it while it runs. Errors: the handler's; Unavailable (no daemon); InvalidArgument for a
  // parameter that is not UTF-8.
  Result<std::string> Call(std::string_view request, const ParameterList& parameters, const Attachments& with = {});
  // Runs work of this process's own with progress on stderr. SIGINT and SIGTERM cancel it; or they end the process at
  // once, for work that leaves nothing to clean up and may wait for a mount whose daemon does not answer.
  enum class Signals { kCancel, kEnd };
  Result<std::string> RunJob(const std::function<Result<std::string>(JobControl&)>& work,
                             Signals signals = Signals::kCancel) const;
  // A message for people on stderr; nothing with -q or --json.
  void Say(std::string_view line) const;
  // A line on stderr about what may not be as it was meant.
  void Warn(std::string_view message) const;

 private:
  Result<Catalog*> Keep(Result<std::unique_ptr<Catalog>> opened);
  std::string WarningLine(std::string_view message) const;

  GlobalOptions options_;
  Style style_;
  uint64_t memory_budget_bytes_ = kDefaultMemoryBudgetBytes;
  std::unique_ptr<Catalog> catalog_;
};

// The option that UseMemoryBudget reads.
inline constexpr OptionSpec kMemoryBudgetOption = {"--memory-budget", "BYTES",
                                                   "with --store: memory for caches and buffers together (256M, 2G; "
                                                   "default 2G); a daemon has its own"};

// While it lives, SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGXCPU call `on_signal` (async-signal-safe code only). A second
// SIGINT or SIGTERM ends the process at once with 130 when `second_exits`.
class InterruptScope {
 public:
  InterruptScope(void (*on_signal)(void*), void* argument, bool second_exits);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
};

// `path` with a leading ~ as HOME, as a shell does where it sees a path begin. Errors: InvalidArgument.
Result<std::string> HomeExpanded(const std::string& path);
// That as an absolute one, links kept. Errors: InvalidArgument, Io.
Result<std::string> AbsolutePath(const std::string& path);

}  // namespace modelstore
