// Lanes: how many threads work for one job (layer: catalog/write; private).
#pragma once

#include <atomic>
#include <functional>

#include "catalog/read/worker_pool.h"
#include "codec/support/status.h"

namespace modelstore {

// A bound on the threads that work for one job at once, over all its loops, nested ones too: what bounds the memory of
// a job whose tasks need some each. The job's own thread has the first lane; every other thread that helps takes one as
// long as it helps.
class Lanes {
 public:
  // count >= 1.
  Lanes(WorkerPool& pool, unsigned count) : pool_(pool), count_(count), free_(count - 1) {}
  unsigned count() const { return count_; }
  // WorkerPool::ParallelFor by the caller, who has a lane, and whoever finds one. Tasks start in order.
  Status Run(size_t n, const std::function<Status(size_t)>& task);

 private:
  WorkerPool& pool_;
  const unsigned count_;
  std::atomic<unsigned> free_;
};

}  // namespace modelstore
