// ParallelFor with a Status (layer: catalog/write; private).
#pragma once

#include <atomic>
#include <functional>

#include "catalog/read/worker_pool.h"
#include "codec/support/status.h"

namespace modelstore {

// What `task` returns, or what it throws as a Status: ResourceExhausted when memory runs out, else Internal.
Status Guarded(const std::function<Status()>& task);

// Runs task(i) for every i in [0, n), guarded, on the caller and the pool. After the first failure the tasks that have
// not started are skipped and that failure is returned.
Status ParallelRun(WorkerPool& pool, size_t n, const std::function<Status(size_t)>& task);

// A bound on the threads that work for one job at once, over all its loops, nested ones too: what bounds the memory of
// a job whose tasks need some each. The job's own thread has the first lane; every other thread that helps takes one as
// long as it helps.
class Lanes {
 public:
  // count >= 1.
  Lanes(WorkerPool& pool, unsigned count) : pool_(pool), count_(count), free_(count - 1) {}
  unsigned count() const { return count_; }
  // ParallelRun by the caller, who has a lane, and whoever finds one. Tasks start in order.
  Status Run(size_t n, const std::function<Status(size_t)>& task);

 private:
  WorkerPool& pool_;
  const unsigned count_;
  std::atomic<unsigned> free_;
};

}  // namespace modelstore
