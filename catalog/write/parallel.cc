#include "catalog/write/parallel.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "codec/support/guarded.h"

namespace modelstore {

Status Lanes::Run(size_t n, const std::function<Status(size_t)>& task) {
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&]() -> Status {
    for (size_t i; !failed && (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      Status status = Guarded([&] { return task(i); });
      if (status.ok()) continue;
      failed = true;
      return status;
    }
    return OkStatus();
  };
  const std::thread::id caller = std::this_thread::get_id();
  const Status helped = pool_.ParallelFor(std::min<size_t>(n, count_), [&](size_t) {
    if (std::this_thread::get_id() == caller) return work();
    unsigned free = free_.load();
    do {
      if (free == 0) return OkStatus();
    } while (!free_.compare_exchange_weak(free, free - 1));
    Status status = work();
    ++free_;
    return status;
  });
  RETURN_IF_ERROR(helped);
  // Others may have had all turns of that loop and no lane.
  return work();
}

}  // namespace modelstore
