// WorkerPool: the threads of one process that decode, encode and hash (layer: catalog/read).
//
// Thread-safe. ParallelFor may be called from any thread, also from a worker: the caller takes part, so it can never
// deadlock on a full pool.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "codec/support/status.h"

namespace modelstore {

class WorkerPool {
 public:
  // threads == 0: one a core.
  explicit WorkerPool(unsigned threads = 0);
  ~WorkerPool();  // waits for submitted work
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned threads() const;
  // Runs task(i), guarded (codec/support/guarded.h), for every i in [0, n) on the caller and the workers; returns when
  // all have returned. After the first failure the tasks that have not started are skipped and that failure is
  // returned.
  Status ParallelFor(size_t n, const std::function<Status(size_t)>& task) noexcept;
  // Runs `task` some time later on a worker; what it throws is logged. False (not run) when `max_queued` tasks wait,
  // when there is no worker, or no memory to queue it.
  bool Submit(std::function<void()> task, size_t max_queued = 1024) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
