#include "catalog/read/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
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
  std::condition_variable idle;
  Loop* before = nullptr;  // in the pool's list
  Loop* behind = nullptr;
  std::mutex failure_mutex;
  Status failure;  // the first

  void Run() noexcept {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      Status status = Guarded([&] { return task(i); });
      if (status.ok()) continue;
      next.store(n, std::memory_order_relaxed);  // the tasks that have not started are skipped
      const std::lock_guard lock(failure_mutex);
      if (failure.ok()) failure = std::move(status);
    }
  }
  bool Wanted() const { return helpers < max_helpers && next.load(std::memory_order_relaxed) < n; }
};

}  // namespace

struct WorkerPool::Impl {
  std::mutex mutex;
  std::condition_variable work;
  // The loops, in order of arrival. A loop brings its own links, so that adding it cannot fail.
  Loop* first = nullptr;
  Loop* last = nullptr;
  std::deque<std::function<void()>> queue;
  bool stopping = false;
  std::vector<Thread> workers;

  void Add(Loop& loop) {
    loop.before = last;
    (last == nullptr ? first : last->behind) = &loop;
    last = &loop;
  }
  void Remove(Loop& loop) {
    (loop.before == nullptr ? first : loop.before->behind) = loop.behind;
    (loop.behind == nullptr ? last : loop.behind->before) = loop.before;
  }
  Loop* FindWanted() const {
    Loop* loop = first;
    while (loop != nullptr && !loop->Wanted()) loop = loop->behind;
    return loop;
  }

  // Loops first: somebody waits for them. Submitted tasks are done before the pool goes.
  void Work() noexcept {
    std::unique_lock lock(mutex);
    while (true) {
      if (Loop* const loop = FindWanted(); loop != nullptr) {
        ++loop->helpers;
        lock.unlock();
        loop->Run();
        lock.lock();
        if (--loop->helpers == 0) loop->idle.notify_all();
      } else if (!queue.empty()) {
        std::function<void()> task = std::move(queue.front());
        queue.pop_front();
        lock.unlock();
        const Status status = Guarded([&] {
          task();
          return OkStatus();
        });
        if (!status.ok()) Log(LogLevel::kError, "a task in the background ended early");
        task = nullptr;
        lock.lock();
      } else if (stopping) {
        return;
      } else {
        work.wait(lock);
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
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work.notify_all();
  for (Thread& worker : impl_->workers) worker.Join();
}

unsigned WorkerPool::threads() const { return std::max<unsigned>(1, static_cast<unsigned>(impl_->workers.size())); }

Status WorkerPool::ParallelFor(size_t n, const std::function<Status(size_t)>& task) noexcept {
  // With the caller as one of them, at most threads() run a loop.
  const unsigned helpers = static_cast<unsigned>(std::min<size_t>(threads() - 1, n == 0 ? 0 : n - 1));
  Loop loop(task, n, helpers);
  if (helpers == 0) {
    loop.Run();
    return std::move(loop.failure);
  }
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->Add(loop);
  }
  for (unsigned i = 0; i < helpers; ++i) impl_->work.notify_one();
  loop.Run();
  std::unique_lock lock(impl_->mutex);
  impl_->Remove(loop);
  loop.idle.wait(lock, [&] { return loop.helpers == 0; });
  return std::move(loop.failure);
}

bool WorkerPool::Submit(std::function<void()> task, size_t max_queued) noexcept {
  try {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->stopping || impl_->workers.empty() || impl_->queue.size() >= max_queued) return false;
    impl_->queue.push_back(std::move(task));
  } catch (const std::bad_alloc&) {
    return false;
  }
  impl_->work.notify_one();
  return true;
}

}  // namespace modelstore
