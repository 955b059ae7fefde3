#include "daemon/service/jobs.h"

#include <chrono>

namespace modelstore {

JobTable::Entry::Entry(JobTable* table, JobInfo info) : table_(table) {
  info.started_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  const MutexLock lock(table_->mutex_);
  info.id = ++table_->last_id_;
  at_ = table_->jobs_.insert(table_->jobs_.end(), std::move(info));
}

JobTable::Entry::~Entry() {
  const MutexLock lock(table_->mutex_);
  table_->jobs_.erase(at_);
}

void JobTable::Entry::Update(const JobProgress& progress) {
  const MutexLock lock(table_->mutex_);
  at_->phase = progress.phase;
  at_->done_bytes = progress.done_bytes;
  at_->total_bytes = progress.total_bytes;
}

std::vector<JobInfo> JobTable::List() const {
  const MutexLock lock(mutex_);
  return {jobs_.begin(), jobs_.end()};
}

}  // namespace modelstore
