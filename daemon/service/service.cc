#include "daemon/service/service.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "codec/json/json_text.h"
#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/mutex.h"
#include "codec/support/signals.h"
#include "codec/support/thread.h"
#include "daemon/service/access_log.h"
#include "daemon/service/compact_policy.h"
#include "daemon/service/limits.h"
#include "daemon/service/metrics.h"
#include "daemon/service/metrics_server.h"
#include "daemon/service/mount_keeper.h"
#include "daemon/service/server.h"
#include "daemon/service/socket_listener.h"
#include "gpu/engine/gpu_decoder.h"

namespace modelstore {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int kNoDescriptorsWaitMs = 100;
constexpr int kAcceptedAtOnce = 64;
constexpr int kMaxMountsAgain = 5;  // within kMountsAgainWindow; more means that something keeps taking it away
constexpr auto kMountsAgainWindow = std::chrono::minutes(1);

// Ends the process when an orderly end takes too long.
class ShutdownLimit {
 public:
  // Without a thread there is no limit.
  explicit ShutdownLimit(std::chrono::seconds limit) {
    Result<Thread> thread = Thread::Start([this, limit] {
      const auto deadline = Clock::now() + limit;
      const MutexLock lock(mutex_);
      while (!done_ && changed_.WaitUntil(mutex_, deadline)) continue;
      if (done_) return;
      Log(LogLevel::kError, "not stopped in time; ending at once (the store survives that)",
          {{"seconds", std::to_string(limit.count())}});
      _exit(1);
    });
    if (thread.ok()) {
      thread_ = *std::move(thread);
    } else {
      Log(LogLevel::kWarning, "stopping may take as long as it takes: there is no thread to watch it");
    }
  }
  ~ShutdownLimit() {
    {
      const MutexLock lock(mutex_);
      done_ = true;
    }
    changed_.NotifyAll();
    thread_.Join();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool done_ MS_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

void Notify(const std::string& state) { (void)sd_notify(0, state.c_str()); }

// -1 without a watchdog; else twice as often as it asks.
int WatchdogPeriodMs() {
  uint64_t microseconds = 0;
  if (sd_watchdog_enabled(0, &microseconds) <= 0) return -1;
  return static_cast<int>(std::clamp<uint64_t>(microseconds / 2000, 1, 3'600'000));
}

// The signals that the daemon takes, from now on through a descriptor, in this thread and those it starts.
Result<int> TakeSignals() {
  sigset_t taken;
  sigemptyset(&taken);
  IgnoreStraySignals();
  for (const int number : {SIGTERM, SIGINT, SIGQUIT, SIGXCPU, SIGHUP, SIGUSR1}) sigaddset(&taken, number);
  pthread_sigmask(SIG_BLOCK, &taken, nullptr);
  const int fd = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return StatusFromErrno(errno, "creating a signalfd");
  return fd;
}

GpuOptions GpuOptionsOf(const Config& config) {
  GpuOptions options;
  options.memory_bytes = config.gpu.memory_bytes;
  options.pinned_bytes = config.memory_budget_bytes / 8;
  options.plugin = config.gpu.plugin;
  options.probe_command = {"/proc/self/exe", "--probe-gpu"};
  if (config.gpu.mode == "off") {
    options.mode = GpuOptions::Mode::kOff;
  } else if (config.gpu.mode != "auto") {
    options.mode = GpuOptions::Mode::kDevice;
    options.device = std::atoi(config.gpu.mode.c_str());
  } else if (options.plugin.empty() && Plugin::DefaultPath().empty()) {
    options.mode = GpuOptions::Mode::kOff;  // nothing is set aside for what is not there
  }
  return options;
}

// For `status`.
std::string GpuStateJson(const GpuState& state) {
  Json out;
  out["state"] = GpuKindName(state.kind);
  out["device"] = state.device < 0 ? Json(nullptr) : Json(state.device);
  out["name"] = state.name.empty() ? Json(nullptr) : Json(state.name);
  out["reason"] = state.reason.empty() ? Json(nullptr) : Json(state.reason);
  out["measured_bytes_per_second"] = static_cast<uint64_t>(state.device_bytes_per_second);
  out["measured_cpu_bytes_per_second"] = static_cast<uint64_t>(state.cpu_bytes_per_second);
  out["recent_bytes_per_second"] = static_cast<uint64_t>(state.recent_bytes_per_second);
  out["batch_bytes"] = state.batch_bytes;
  out["batches"] = state.batches;
  out["decoded_bytes"] = state.decoded_bytes;
  out["failed_blocks"] = state.failed_blocks;
  out["failed_batches"] = state.failed_batches;
  return JsonText(out);
}

class Service {
 public:
  explicit Service(const Config& config) : config_(config) {}

  Status Run() {
    const Status status = Guarded([this] { return StartAll(); });
    const Status end = status.ok() ? Guarded([this] { return Loop(); }) : status;
    Notify("STOPPING=1");
    const ShutdownLimit limit{std::chrono::seconds(config_.shutdown_seconds)};
    StopAll();
    return end;
  }

 private:
  Status StartAll() {
    ASSIGN_OR_RETURN(signals_, TakeSignals());
    // First, while there is one thread. Who connects from now on is served when everything stands.
    ASSIGN_OR_RETURN(listener_, SocketListener::Open(config_.socket));
    Notify("STATUS=opening the store " + config_.store);
    Status why_read_only;
    ASSIGN_OR_RETURN(catalog_, OpenCatalog(&why_read_only));
    gpu_ = GpuDecoder::Start(GpuOptionsOf(config_), catalog_->pool());
    catalog_->reader().SetBatchDecoder(gpu_);
    state_ = std::make_unique<ServerState>(*catalog_, PassableDescriptors(config_.max_clients));
    state_->why_read_only = why_read_only;
    state_->layer_names = config_.layer_names;
    state_->group = config_.group;
    state_->log_reads = config_.access_log;
    state_->complete_status = [this](const std::string& document, const Caller& caller) {
      return CompleteStatus(document, caller);
    };
    if (!config_.mount.empty()) {
      MountOptions options;
      options.mountpoint = config_.mount;
      options.read_ahead_kb = config_.read_ahead_kb;
      options.allow_other = geteuid() == 0;
      options.on_access = [this](const AccessRecord& record) {
        if (state_->log_reads) LogAccess(record);
      };
      ASSIGN_OR_RETURN(mount_, MountKeeper::Start(*catalog_, options));
      ShowMount();
    }
    server_ = std::make_unique<Server>(state_.get(), config_.max_clients);
    if (config_.compact_below_free_bytes > 0 && why_read_only.ok()) {
      ASSIGN_OR_RETURN(policy_, CompactPolicy::Start(config_, state_.get()));
    }
    if (!config_.metrics.empty()) {
      ASSIGN_OR_RETURN(metrics_, MetricsServer::Start(config_.metrics, [this] { return MetricsText(Sample()); }));
      Log(LogLevel::kInfo, "metrics", {{"address", metrics_->address()}});
    }
    Log(LogLevel::kInfo, "ready",
        {{"version", MODELSTORE_VERSION},
         {"store", config_.store},
         {"mount", config_.mount},
         {"socket", listener_->path()},
         {"memory_budget_bytes", std::to_string(config_.memory_budget_bytes)}});
    Notify("READY=1\nSTATUS=serving " + config_.store + (config_.mount.empty() ? "" : " at " + config_.mount));
    return OkStatus();
  }

  // Read-only when the folder cannot be written to: models stay readable.
  Result<std::unique_ptr<Catalog>> OpenCatalog(Status* why_read_only) {
    CatalogOptions options;
    options.create_if_missing = true;
    // What is pinned for the GPU is of the budget too.
    options.memory_budget_bytes = config_.memory_budget_bytes - PinnedBytes(GpuOptionsOf(config_));
    options.threads = config_.threads;
    ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, Catalog::OpenToServe(config_.store, options, why_read_only));
    if (why_read_only->ok()) return catalog;
    Log(LogLevel::kWarning, "the store is served read-only", {{"error", std::string(why_read_only->message())}});
    *why_read_only =
        why_read_only->WithContext("the daemon can only read its store; make the folder writable and restart it");
    return catalog;
  }

  // Until a signal says to stop.
  Status Loop() {
    const int watchdog_ms = WatchdogPeriodMs();
    for (;;) {
      std::array<pollfd, 3> polled = {
          {{signals_, POLLIN, 0}, {listener_->fd(), POLLIN, 0}, {mount_ ? mount_->ended_fd() : -1, POLLIN, 0}}};
      const int ready = poll(polled.data(), polled.size(), watchdog_ms);
      if (ready < 0 && errno != EINTR) return StatusFromErrno(errno, "waiting for clients");
      if (watchdog_ms > 0) Notify("WATCHDOG=1");
      if (ready <= 0) continue;
      if (polled[0].revents != 0 && StopAsked()) return OkStatus();
      if (polled[2].revents != 0) RETURN_IF_ERROR(MountAgain());
      if (polled[1].revents != 0) AcceptSome();
    }
  }

  bool StopAsked() {
    signalfd_siginfo info{};
    while (read(signals_, &info, sizeof info) == sizeof info) {
      const auto number = static_cast<int>(info.ssi_signo);
      if (number == SIGUSR1) {
        state_->log_reads = !state_->log_reads;
        Log(LogLevel::kInfo, "access log", {{"on", state_->log_reads ? "true" : "false"}});
      } else if (number != SIGHUP) {
        Log(LogLevel::kInfo, "stopping", {{"signal", std::string("SIG") + sigabbrev_np(number)}});
        return true;
      }
    }
    return false;
  }

  // Not all that wait, should that be without end: signals have their turn too.
  void AcceptSome() {
    for (int i = 0; i < kAcceptedAtOnce; ++i) {
      const Result<int> socket = listener_->Accept();
      if (socket.ok()) {
        server_->Serve(*socket);
        continue;
      }
      if (socket.status().code() == StatusCode::kBusy) return;
      Log(LogLevel::kError, "accepting a client", {{"error", std::string(socket.status().message())}});
      poll(nullptr, 0, kNoDescriptorsWaitMs);  // for descriptors to be closed
      return;
    }
  }

  Status MountAgain() {
    Log(LogLevel::kWarning, "the mount was taken away from outside; mounting again", {{"mount", config_.mount}});
    const auto now = Clock::now();
    std::erase_if(mounted_again_, [&](Clock::time_point then) { return now - then > kMountsAgainWindow; });
    mounted_again_.push_back(now);
    if (mounted_again_.size() > kMaxMountsAgain)
      return Unavailable("the mount on " + config_.mount + " was taken away " + std::to_string(mounted_again_.size()) +
                         " times within a minute");
    state_->mount_device = 0;
    RETURN_IF_ERROR(mount_->MountAgain().WithContext("mounting again"));
    ShowMount();
    return OkStatus();
  }

  void ShowMount() {
    state_->mount_device = mount_->device();
    const std::optional<MountState> state = mount_->state();
    Log(LogLevel::kInfo, "mounted",
        {{"mount", state->mountpoint}, {"read_ahead_kb", std::to_string(state->read_ahead_kb)}});
  }

  void StopAll() {
    const auto start = Clock::now();
    listener_.reset();
    policy_.reset();
    if (server_) server_->Stop();
    if (mount_) {
      if (const Status status = mount_->Stop(); !status.ok())
        Log(LogLevel::kError, "unmounting", {{"error", std::string(status.message())}});
    }
    metrics_.reset();  // shows the others; who watches sees jobs end
    server_.reset();
    mount_.reset();
    state_.reset();
    gpu_.reset();
    catalog_.reset();
    if (signals_ >= 0) close(signals_);
    const auto taken = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
    Log(LogLevel::kInfo, "stopped", {{"milliseconds", std::to_string(taken.count())}});
  }

  MetricsSample Sample() const {
    MetricsSample sample;
    sample.server = state_->counters.counts();
    if (mount_) sample.mount = mount_->stats();
    sample.reading = catalog_->reader().stats();
    sample.jobs = state_->jobs.List().size();
    if (const Result<CatalogMeta> meta = catalog_->Meta(); meta.ok()) sample.models = meta->model_count;
    if (const Result<uint64_t> bytes = catalog_->store().DiskBytes(); bytes.ok()) sample.store_disk_bytes = *bytes;
    sample.memory_budget_bytes = config_.memory_budget_bytes;
    sample.gpu = gpu_->state();
    return sample;
  }

  std::string CompleteStatus(const std::string& document, const Caller& caller) const {
    Json out = ParseOrderedJson(document);
    const std::optional<MountState> mount = mount_ ? mount_->state() : std::nullopt;
    if (mount) {
      out["mount"] = mount->mountpoint;
      out["read_ahead_kb"] = mount->read_ahead_kb;
    }
    out["decode"]["gpu"] = ParseOrderedJson(GpuStateJson(gpu_->state()));
    out["memory_budget_bytes"] = config_.memory_budget_bytes;
    out["pid"] = getpid();
    out["uptime_seconds"] = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - started_).count();
    Json jobs = Json::array();
    for (const JobInfo& job : state_->jobs.List()) {
      // The name of a model that others may not see is not for them while it is stored either.
      const bool open = caller.administrator || caller.Is(job.uid);
      jobs.push_back({{"id", job.id},
                      {"request", job.request},
                      {"uid", job.uid},
                      {"model", open && !job.model.empty() ? Json(job.model) : Json(nullptr)},
                      {"phase", job.phase.empty() ? Json(nullptr) : Json(job.phase)},
                      {"done_bytes", job.done_bytes},
                      {"total_bytes", job.total_bytes},
                      {"started", job.started_ns / 1'000'000'000}});
    }
    out["jobs"] = std::move(jobs);
    out["clients"] = state_->counters.counts().clients;
    return JsonText(out);
  }

  const Config config_;
  const Clock::time_point started_ = Clock::now();
  int signals_ = -1;
  std::unique_ptr<SocketListener> listener_;
  std::unique_ptr<Catalog> catalog_;
  std::shared_ptr<GpuDecoder> gpu_;
  std::unique_ptr<ServerState> state_;
  std::unique_ptr<MountKeeper> mount_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<MetricsServer> metrics_;
  std::unique_ptr<CompactPolicy> policy_;
  std::vector<Clock::time_point> mounted_again_;
};

}  // namespace

Status RunService(const Config& config) { return Service(config).Run(); }

}  // namespace modelstore
