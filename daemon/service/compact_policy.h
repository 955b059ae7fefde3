// CompactPolicy: makes models compact that allow it when the store's disk becomes short of space
// (layer: daemon/service; docs/compact.md). A thread of its own, one model at a time.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "codec/support/mutex.h"
#include "codec/support/thread.h"
#include "daemon/service/client_connection.h"
#include "daemon/service/config.h"

namespace modelstore {

// The oldest exact model that allows it, has a base and is no other's base, of those that were not tried in vain.
std::optional<ModelRecord> NextToCompact(const std::vector<ModelRecord>& models,
                                         const std::set<std::pair<ModelId, PushId>>& in_vain);

class CompactPolicy {
 public:
  // `config` and `state` outlive the object. Looks at the disk now and every minute. Errors: ResourceExhausted.
  static Result<std::unique_ptr<CompactPolicy>> Start(const Config& config, ServerState* state);
  ~CompactPolicy();  // ends a job under way; it rolls back

 private:
  CompactPolicy(const Config& config, ServerState* state) : config_(config), state_(*state) {}
  void Run();
  // Until enough is free or no model is left.
  Status Relieve();
  Status MakeCompact(const ModelRecord& model);

  const Config& config_;
  ServerState& state_;
  std::set<std::pair<ModelId, PushId>> in_vain_;  // the thread's own
  Mutex mutex_;
  CondVar changed_;
  std::unique_ptr<JobControl> job_ MS_GUARDED_BY(mutex_);  // the object itself is thread-safe
  bool stopping_ MS_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

}  // namespace modelstore
