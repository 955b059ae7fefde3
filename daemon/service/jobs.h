// The requests that are being served, for `status` (layer: daemon/service). Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "codec/support/job_control.h"
#include "codec/support/mutex.h"

namespace modelstore {

struct JobInfo {
  uint64_t id = 0;
  std::string request;
  std::string model;  // "" when it is not about one
  uid_t uid = 0;
  std::string phase{};  // "" before the first
  uint64_t done_bytes = 0, total_bytes = 0;
  int64_t started_ns = 0;  // since 1970
};

class JobTable {
 public:
  // In the table as long as it lives.
  class Entry {
   public:
    Entry(JobTable* table, JobInfo info);
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    void Update(const JobProgress& progress);

   private:
    JobTable* const table_;
    std::list<JobInfo>::iterator at_;  // what it points at is guarded by the table's mutex_
  };

  std::vector<JobInfo> List() const;

 private:
  mutable Mutex mutex_;
  std::list<JobInfo> jobs_ MS_GUARDED_BY(mutex_);
  uint64_t last_id_ MS_GUARDED_BY(mutex_) = 0;
};

}  // namespace modelstore
