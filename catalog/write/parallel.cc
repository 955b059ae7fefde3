#include "catalog/write/parallel.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <new>

namespace modelstore {

Status Guarded(const std::function<Status()>& task) {
  try {
    return task();
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory; give the process more, or lower the memory budget");
  } catch (const std::exception& e) {
    return Internal(std::string("unexpected failure: ") + e.what());
  } catch (...) {
    return Internal("unexpected failure without a description");
  }
}

Status ParallelRun(WorkerPool& pool, size_t n, const std::function<Status(size_t)>& task) {
  if (n == 1) return Guarded([&] { return task(0); });
  std::atomic<bool> failed{false};
  std::mutex mutex;
  Status first;
  pool.ParallelFor(n, [&](size_t i) {
    if (failed.load(std::memory_order_relaxed)) return;
    const Status status = Guarded([&] { return task(i); });
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (!failed.exchange(true)) first = status;
  });
  return first;
}

}  // namespace modelstore
