#include "daemon/service/compact_policy.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "catalog/write/compact_model.h"
#include "catalog/write/maintain.h"
#include "codec/support/files.h"
#include "codec/support/guarded.h"
#include "codec/support/log.h"

namespace modelstore {
namespace {

constexpr auto kLookEvery = std::chrono::minutes(1);

}  // namespace

std::optional<ModelRecord> NextToCompact(const std::vector<ModelRecord>& models,
                                         const std::set<std::pair<ModelId, PushId>>& in_vain) {
  std::set<ModelId> bases;
  for (const ModelRecord& model : models) bases.insert(model.base);
  const ModelRecord* oldest = nullptr;
  for (const ModelRecord& model : models) {
    if (!model.allow_compact || model.fidelity != Fidelity::kExact || model.base == 0) continue;
    if (bases.contains(model.id) || in_vain.contains({model.id, model.push})) continue;
    if (oldest == nullptr || model.created_ns < oldest->created_ns) oldest = &model;
  }
  return oldest == nullptr ? std::nullopt : std::optional(*oldest);
}

Result<std::unique_ptr<CompactPolicy>> CompactPolicy::Start(const Config& config, ServerState* state) {
  std::unique_ptr<CompactPolicy> policy(new CompactPolicy(config, state));
  ASSIGN_OR_RETURN(policy->thread_, Thread::Start([raw = policy.get()] { raw->Run(); }));
  return policy;
}

CompactPolicy::~CompactPolicy() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    if (job_ != nullptr) job_->Cancel();
  }
  changed_.NotifyAll();
  state_.pushes.WakeAll();
  thread_.Join();
}

void CompactPolicy::Run() {
  MutexLock lock(mutex_);
  while (!stopping_) {
    lock.Unlock();
    const Status status = Guarded([this] { return Relieve(); });
    if (!status.ok() && status.code() != StatusCode::kCancelled)
      Log(LogLevel::kError, "making models compact", {{"error", std::string(status.message())}});
    lock.Lock();
    const auto next_look = std::chrono::steady_clock::now() + kLookEvery;
    while (!stopping_ && changed_.WaitUntil(mutex_, next_look)) continue;
  }
}

Status CompactPolicy::Relieve() {
  while (true) {
    ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeBytes(config_.store));
    if (free_bytes >= config_.compact_below_free_bytes) return OkStatus();
    ASSIGN_OR_RETURN(const std::vector<ModelRecord> models, state_.catalog.ListModels());
    const std::optional<ModelRecord> model = NextToCompact(models, in_vain_);
    if (!model) return OkStatus();
    Log(LogLevel::kInfo, "space is short; making a model compact",
        {{"model", model->name}, {"free_bytes", std::to_string(free_bytes)}});
    const Status made = MakeCompact(*model);
    if (made.ok()) continue;
    if (made.code() == StatusCode::kCancelled) return made;
    in_vain_.emplace(model->id, model->push);
    Log(LogLevel::kWarning, "a model stays exact", {{"model", model->name}, {"error", std::string(made.message())}});
  }
}

Status CompactPolicy::MakeCompact(const ModelRecord& model) {
  JobTable::Entry entry(&state_.jobs, JobInfo{.request = "compact", .model = model.name, .uid = geteuid()});
  JobControl* job = nullptr;  // which only this function takes away
  {
    const MutexLock lock(mutex_);
    if (stopping_) return Cancelled("the daemon stops");
    job_ = std::make_unique<JobControl>([&](const JobProgress& progress) { entry.Update(progress); });
    job = job_.get();
    job->on_warning = [&](const std::string& message) {
      Log(LogLevel::kWarning, "making a model compact", {{"model", model.name}, {"warning", message}});
    };
  }
  const auto work = [&]() -> Status {
    ASSIGN_OR_RETURN(const Gate::Place place, state_.pushes.Enter(*job, std::nullopt));
    PushOptions options;
    options.name = model.name;
    // What the caller of the push allowed then is what counts: a model that was pushed again meanwhile may not be
    // meant.
    options.may_replace = [&](const ModelRecord& now) {
      return now.id == model.id && now.push == model.push ? OkStatus() : Busy("it was replaced meanwhile");
    };
    CompactOptions& compact = options.compact.emplace();
    compact.max_drift = config_.compact_max_drift;
    if (config_.compact_target_ratio > 0) compact.target_ratio = config_.compact_target_ratio;
    ASSIGN_OR_RETURN(const PushReport report, CompactModel(state_.catalog, options, *job));
    ASSIGN_OR_RETURN(const PruneReport pruned, Prune(state_.catalog, /*dry_run=*/false, *job));
    Log(LogLevel::kInfo, "a model is compact",
        {{"model", model.name},
         {"stored_bytes", std::to_string(report.stored_bytes)},
         {"drift", std::to_string(report.drift)},
         {"freed_bytes", std::to_string(pruned.freed_bytes)}});
    return OkStatus();
  };
  const Status status = Guarded(work);
  const MutexLock lock(mutex_);
  job_.reset();
  return status;
}

}  // namespace modelstore
