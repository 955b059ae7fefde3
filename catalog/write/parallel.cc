#include "catalog/write/parallel.h"

#include <atomic>
#include <mutex>
#include <new>

namespace modelstore {
namespace {

Status RunGuarded(const std::function<Status(size_t)>& task, size_t i) {
  try {
    return task(i);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory; give the process more, or lower the memory budget");
  }
}

}  // namespace

Status ParallelRun(WorkerPool& pool, size_t n, const std::function<Status(size_t)>& task) {
  if (n == 1) return RunGuarded(task, 0);
  std::atomic<bool> failed{false};
  std::mutex mutex;
  Status first;
  pool.ParallelFor(n, [&](size_t i) {
    if (failed.load(std::memory_order_relaxed)) return;
    const Status status = RunGuarded(task, i);
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (!failed.exchange(true)) first = status;
  });
  return first;
}

}  // namespace modelstore
