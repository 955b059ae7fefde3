// ParallelFor with a Status (layer: catalog/write; private).
#pragma once

#include <functional>

#include "catalog/read/worker_pool.h"
#include "codec/support/status.h"

namespace modelstore {

// What `task` returns, or what it throws as a Status: ResourceExhausted when memory runs out, else Internal.
Status Guarded(const std::function<Status()>& task);

// Runs task(i) for every i in [0, n), guarded, on the caller and the pool. After the first failure the tasks that have
// not started are skipped and that failure is returned.
Status ParallelRun(WorkerPool& pool, size_t n, const std::function<Status(size_t)>& task);

}  // namespace modelstore
