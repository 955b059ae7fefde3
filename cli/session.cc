#include "cli/session.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/progress.h"
#include "cli/terminal.h"
#include "codec/json/json_text.h"
#include "codec/support/files.h"
#include "codec/support/size_text.h"
#include "daemon/handlers/handlers.h"
#include "daemon/protocol/client.h"

namespace modelstore {
namespace {

constexpr unsigned kQuickAnswerSeconds = 10;
constexpr std::array<int, 5> kSignals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU};

std::atomic<void (*)(void*)> interrupt_function{nullptr};
std::atomic<void*> interrupt_argument{nullptr};
std::atomic<bool> interrupt_seen{false};
std::atomic<bool> interrupt_second_exits{false};

void OnSignal(int) {
  if (interrupt_seen.exchange(true) && interrupt_second_exits.load()) _exit(130);
  if (const auto function = interrupt_function.load()) function(interrupt_argument.load());
}

Result<std::string> ParametersText(const ParameterList& parameters) {
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [name, value] : parameters) std::visit([&, &key = name](const auto& v) { out[key] = v; }, value);
  try {
    return JsonText(out);
  } catch (const nlohmann::json::exception&) {
    return InvalidArgument("an argument is not valid UTF-8; names and paths given to modelstore must be");
  }
}

Status NoStore() { return Unavailable("no store: pass --store DIR or set MODELSTORE_STORE"); }

}  // namespace

InterruptScope::InterruptScope(void (*on_signal)(void*), void* argument, bool second_exits) {
  interrupt_seen = false;
  interrupt_second_exits = second_exits;
  interrupt_argument = argument;
  interrupt_function = on_signal;
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  for (const int signal_number : kSignals) sigaction(signal_number, &action, nullptr);
}

InterruptScope::~InterruptScope() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  for (const int signal_number : kSignals) sigaction(signal_number, &action, nullptr);
  interrupt_function = nullptr;
}

Result<std::string> HomeExpanded(const std::string& path) {
  const char* const home = std::getenv("HOME");
  return ExpandHome(path, home == nullptr ? "" : home);
}

Result<std::string> AbsolutePath(const std::string& path) {
  if (path.empty()) return InvalidArgument("an empty path names nothing");
  ASSIGN_OR_RETURN(const std::string expanded, HomeExpanded(path));
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(expanded, error);
  if (error) return StatusFromErrno(error.value(), "finding the current folder");
  return absolute.string();
}

Session::Session(const GlobalOptions& options) : options_(options), style_(StyleOf(STDOUT_FILENO, options.no_color)) {}

Status Session::UseMemoryBudget(const Arguments& arguments) {
  const std::string text = arguments.Value(kMemoryBudgetOption.name);
  if (text.empty()) return OkStatus();
  Result<uint64_t> bytes = ParseSize(text);
  if (!bytes.ok()) return bytes.status().WithContext(kMemoryBudgetOption.name);
  memory_budget_bytes_ = *bytes;
  return OkStatus();
}

Result<Catalog*> Session::Open(bool writes, bool creates) {
  if (catalog_) return catalog_.get();
  if (options_.store.empty()) return NoStore();
  CatalogOptions catalog_options;
  catalog_options.create_if_missing = creates;
  catalog_options.read_only = !writes;
  catalog_options.memory_budget_bytes = memory_budget_bytes_;
  return Keep(Catalog::Open(options_.store, catalog_options));
}

Result<Catalog*> Session::OpenToServe() {
  if (options_.store.empty()) return NoStore();
  CatalogOptions catalog_options;
  catalog_options.memory_budget_bytes = memory_budget_bytes_;
  Status why_read_only;
  ASSIGN_OR_RETURN(Catalog* const catalog, Keep(Catalog::OpenToServe(options_.store, catalog_options, &why_read_only)));
  if (!why_read_only.ok()) Say("modelstore: the store can only be read: " + Printable(why_read_only.message()));
  return catalog;
}

Result<Catalog*> Session::Keep(Result<std::unique_ptr<Catalog>> opened) {
  if (!opened.ok()) {
    const std::string message(opened.status().message());
    // What is missing is the store, not something in it.
    if (opened.status().code() == StatusCode::kNotFound) return Unavailable(message);
    if (opened.status().code() == StatusCode::kLocked)
      return Locked(message +
                    "; if it is the daemon's, leave out --store and MODELSTORE_STORE to go through the daemon");
    return opened.status();
  }
  catalog_ = std::move(opened).value();
  return catalog_.get();
}

Result<std::string> Session::RunJob(const std::function<Result<std::string>(JobControl&)>& work,
                                    Signals signals) const {
  auto mode = ProgressReporter::Mode::kNone;
  if (!options_.quiet && !options_.json)
    mode = IsTerminal(STDERR_FILENO) ? ProgressReporter::Mode::kBar : ProgressReporter::Mode::kLines;
  ProgressReporter reporter(mode, StyleOf(STDERR_FILENO, options_.no_color), STDERR_FILENO);
  JobControl job([&](const JobProgress& progress) { reporter.Update(progress); });
  job.on_warning = [&](const std::string& message) { reporter.Message(WarningLine(message)); };
  std::optional<InterruptScope> interrupt;
  if (signals == Signals::kCancel)
    interrupt.emplace([](void* j) { static_cast<JobControl*>(j)->Cancel(); }, &job, /*second_exits=*/true);
  return work(job);
}

Result<std::string> Session::Call(std::string_view request, const ParameterList& parameters, const Attachments& with) {
  ASSIGN_OR_RETURN(const std::string parameters_text, ParametersText(parameters));
  const Handler* handler = FindHandler(request);
  if (handler == nullptr) return Internal("no handler for request '" + std::string(request) + "'");
  if (through_daemon()) {
    const std::string socket = options_.socket.empty() ? FindDaemonSocket() : options_.socket;
    const unsigned patience = options_.timeout_seconds.value_or(handler->is_quick ? kQuickAnswerSeconds : 0);
    return RunJob([&](JobControl& job) {
      return CallDaemon(socket, {.request = request,
                                 .parameters = parameters_text,
                                 .source = with.source,
                                 .moments = with.moments,
                                 .sink = with.sink,
                                 .job = &job,
                                 .patience = std::chrono::seconds(patience)});
    });
  }
  return RunJob([&](JobControl& job) -> Result<std::string> {
    ASSIGN_OR_RETURN(Catalog* const catalog, Open(handler->writes, handler->creates_store));
    const Caller caller = Caller::InProcess();
    return handler->run(*catalog, {.parameters = parameters_text,
                                   .job = &job,
                                   .caller = &caller,
                                   .source = with.source,
                                   .moments = with.moments,
                                   .sink = with.sink});
  });
}

std::string Session::WarningLine(std::string_view message) const {
  return Painted("warning: ", Tone::kWarn, StyleOf(STDERR_FILENO, options_.no_color)) + Printable(message);
}

void Session::Warn(std::string_view message) const { WriteAll(STDERR_FILENO, WarningLine(message) + "\n"); }

void Session::Say(std::string_view line) const {
  if (!options_.quiet && !options_.json) WriteAll(STDERR_FILENO, std::string(line) + "\n");
}

}  // namespace modelstore
