#include "catalog/write/parallel.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

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

namespace {

// The first failure of many tasks.
class FirstFailure {
 public:
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  void Note(Status status) {
    if (status.ok()) return;
    const std::lock_guard lock(mutex_);
    if (!failed_.exchange(true)) first_ = std::move(status);
  }
  Status Take() { return std::move(first_); }

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  Status first_;
};

}  // namespace

Status ParallelRun(WorkerPool& pool, size_t n, const std::function<Status(size_t)>& task) {
  if (n == 1) return Guarded([&] { return task(0); });
  FirstFailure failure;
  pool.ParallelFor(n, [&](size_t i) {
    if (!failure.failed()) failure.Note(Guarded([&] { return task(i); }));
  });
  return failure.Take();
}

Status Lanes::Run(size_t n, const std::function<Status(size_t)>& task) {
  FirstFailure failure;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; !failure.failed() && (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
      failure.Note(Guarded([&] { return task(i); }));
  };
  const std::thread::id caller = std::this_thread::get_id();
  pool_.ParallelFor(std::min<size_t>(n, count_), [&](size_t) {
    if (std::this_thread::get_id() == caller) return work();
    unsigned free = free_.load();
    do {
      if (free == 0) return;
    } while (!free_.compare_exchange_weak(free, free - 1));
    work();
    ++free_;
  });
  // Others may have had all turns of that loop and no lane.
  work();
  return failure.Take();
}

}  // namespace modelstore
