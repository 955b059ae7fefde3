// WorkerPool: the threads of one process that decode, encode and hash (layer: catalog/read).
//
// Thread-safe. ParallelFor may be called from any thread, also from a worker: the caller takes part, so it can never
// deadlock on a full pool.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace modelstore {

class WorkerPool {
 public:
  // threads == 0: one a core.
  explicit WorkerPool(unsigned threads = 0);
  ~WorkerPool();  // waits for submitted work
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned threads() const;
  // Runs task(i) for every i in [0, n) on the caller and the workers; returns when all have returned.
  void ParallelFor(size_t n, const std::function<void(size_t)>& task);
  // Runs `task` some time later on a worker. False (not run) when more than `max_queued` tasks wait.
  bool Submit(std::function<void()> task, size_t max_queued = 1024);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
