#include "catalog/read/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/mutex.h"
#include "codec/support/thread.h"

namespace modelstore {
namespace {

// A ParallelFor under way; lives on its caller's stack. `helpers`, `before` and `behind` are guarded by the pool's
// mutex.
struct Loop {
  Loop(const std::function<Status(size_t)>& the_task, size_t count, unsigned helper_limit)
      : task(the_task), n(count), max_helpers(helper_limit) {}

  const std::function<Status(size_t)>& task;
  const size_t n;
  const unsigned max_helpers;
  std::atomic<size_t> next{0};
  unsigned helpers = 0;
  CondVar idle;
  Loop* before = nullptr;  // in the pool's list
  Loop* behind = nullptr;
  Mutex failure_mutex;
  Status failure MS_GUARDED_BY(failure_mutex);  // the first

  void Run() noexcept {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      Status status = Guarded([&] { return task(i); });
      if (status.ok()) continue;
      next.store(n, std::memory_order_relaxed);  // the tasks that have not started are skipped
      const MutexLock lock(failure_mutex);
      if (failure.ok()) failure = std::move(status);
    }
  }
  Status TakeFailure() {
    const MutexLock lock(failure_mutex);
    return std::move(failure);
  }
  bool Wanted() const { return helpers < max_helpers && next.load(std::memory_order_relaxed) < n; }
};

}  // namespace

struct WorkerPool::Impl {
  Mutex mutex;
  CondVar work;
  // The loops, in order of arrival. A loop brings its own links, so that adding it cannot fail.
  Loop* first MS_GUARDED_BY(mutex) = nullptr;
  Loop* last MS_GUARDED_BY(mutex) = nullptr;
  std::deque<std::function<void()>> queue MS_GUARDED_BY(mutex);
  bool stopping MS_GUARDED_BY(mutex) = false;
  std::vector<Thread> workers;

  void Add(Loop& loop) MS_REQUIRES(mutex) {
    loop.before = last;
    (last == nullptr ? first : last->behind) = &loop;
    last = &loop;
  }
  void Remove(Loop& loop) MS_REQUIRES(mutex) {
    (loop.before == nullptr ? first : loop.before->behind) = loop.behind;
    (loop.behind == nullptr ? last : loop.behind->before) = loop.before;
  }
  Loop* FindWanted() const MS_REQUIRES(mutex) {
    Loop* loop = first;
    while (loop != nullptr && !loop->Wanted()) loop = loop->behind;
    return loop;
  }

  // Loops first: somebody waits for them. Submitted tasks are done before the pool goes.
  void Work() noexcept {
    MutexLock lock(mutex);
    while (true) {
      if (Loop* const loop = FindWanted(); loop != nullptr) {
        ++loop->helpers;
        lock.Unlock();
        loop->Run();
        lock.Lock();
        if (--loop->helpers == 0) loop->idle.NotifyAll();
      } else if (!queue.empty()) {
        std::function<void()> task = std::move(queue.front());
        queue.pop_front();
        lock.Unlock();
        const Status status = Guarded([&] {
          task();
          return OkStatus();
        });
        if (!status.ok()) Log(LogLevel::kError, "a task in the background ended early");
        task = nullptr;
        lock.Lock();
      } else if (stopping) {
        return;
      } else {
        work.Wait(mutex);
      }
    }
  }
};

WorkerPool::WorkerPool(unsigned threads) : impl_(std::make_unique<Impl>()) {
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  impl_->workers.reserve(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Result<Thread> worker = Thread::Start([impl = impl_.get()] { impl->Work(); });
    if (!worker.ok()) break;  // those that the system granted must do; callers of ParallelFor work themselves
    impl_->workers.push_back(*std::move(worker));
  }
}

WorkerPool::~WorkerPool() {
  {
    const MutexLock lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work.NotifyAll();
  for (Thread& worker : impl_->workers) worker.Join();
}

unsigned WorkerPool::threads() const { return std::max<unsigned>(1, static_cast<unsigned>(impl_->workers.size())); }

Status WorkerPool::ParallelFor(size_t n, const std::function<Status(size_t)>& task) noexcept {
  // With the caller as one of them, at most threads() run a loop.
  const unsigned helpers = static_cast<unsigned>(std::min<size_t>(threads() - 1, n == 0 ? 0 : n - 1));
  Loop loop(task, n, helpers);
  if (helpers == 0) {
    loop.Run();
    return loop.TakeFailure();
  }
  {
    const MutexLock lock(impl_->mutex);
    impl_->Add(loop);
  }
  for (unsigned i = 0; i < helpers; ++i) impl_->work.NotifyOne();
  loop.Run();
  const MutexLock lock(impl_->mutex);
  impl_->Remove(loop);
  while (loop.helpers != 0) loop.idle.Wait(impl_->mutex);
  return loop.TakeFailure();
}

bool WorkerPool::Submit(std::function<void()> task, size_t max_queued) noexcept {
  try {
    const MutexLock lock(impl_->mutex);
    if (impl_->stopping || impl_->workers.empty() || impl_->queue.size() >= max_queued) return false;
    impl_->queue.push_back(std::move(task));
  } catch (const std::bad_alloc&) {
    return false;
  }
  impl_->work.NotifyOne();
  return true;
}

}  // namespace modelstore
