#include "catalog/read/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace modelstore {
namespace {

// A ParallelFor under way; lives on its caller's stack. `helpers` is guarded by the pool's mutex.
struct Loop {
  Loop(const std::function<void(size_t)>& the_task, size_t count, unsigned helper_limit)
      : task(the_task), n(count), max_helpers(helper_limit) {}

  const std::function<void(size_t)>& task;
  const size_t n;
  const unsigned max_helpers;
  std::atomic<size_t> next{0};
  unsigned helpers = 0;
  std::condition_variable idle;

  void Run() {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) task(i);
  }
  bool Wanted() const { return helpers < max_helpers && next.load(std::memory_order_relaxed) < n; }
};

}  // namespace

struct WorkerPool::Impl {
  std::mutex mutex;
  std::condition_variable work;
  std::vector<Loop*> loops;
  std::deque<std::function<void()>> queue;
  bool stopping = false;
  std::vector<std::thread> workers;

  // Loops first: somebody waits for them. Submitted tasks are done before the pool goes.
  void Work() {
    std::unique_lock lock(mutex);
    while (true) {
      const auto wanted = std::find_if(loops.begin(), loops.end(), [](const Loop* l) { return l->Wanted(); });
      if (wanted != loops.end()) {
        Loop& loop = **wanted;
        ++loop.helpers;
        lock.unlock();
        loop.Run();
        lock.lock();
        if (--loop.helpers == 0) loop.idle.notify_all();
      } else if (!queue.empty()) {
        std::function<void()> task = std::move(queue.front());
        queue.pop_front();
        lock.unlock();
        task();
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
  try {
    for (unsigned i = 0; i < threads; ++i) impl_->workers.emplace_back([impl = impl_.get()] { impl->Work(); });
  } catch (const std::system_error&) {
    // The threads that the system granted must do; callers of ParallelFor work themselves.
  }
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work.notify_all();
  for (std::thread& worker : impl_->workers) worker.join();
}

unsigned WorkerPool::threads() const { return std::max<unsigned>(1, static_cast<unsigned>(impl_->workers.size())); }

void WorkerPool::ParallelFor(size_t n, const std::function<void(size_t)>& task) {
  // With the caller as one of them, at most threads() run a loop.
  const unsigned helpers = static_cast<unsigned>(std::min<size_t>(threads() - 1, n == 0 ? 0 : n - 1));
  if (helpers == 0) {
    for (size_t i = 0; i < n; ++i) task(i);
    return;
  }
  Loop loop(task, n, helpers);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->loops.push_back(&loop);
  }
  for (unsigned i = 0; i < helpers; ++i) impl_->work.notify_one();
  loop.Run();
  std::unique_lock lock(impl_->mutex);
  std::erase(impl_->loops, &loop);
  loop.idle.wait(lock, [&] { return loop.helpers == 0; });
}

bool WorkerPool::Submit(std::function<void()> task, size_t max_queued) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->stopping || impl_->workers.empty() || impl_->queue.size() >= max_queued) return false;
    impl_->queue.push_back(std::move(task));
  }
  impl_->work.notify_one();
  return true;
}

}  // namespace modelstore
