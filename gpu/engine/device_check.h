// Whether a device decodes to the CPU's bytes, and how fast each is (layer: gpu/engine).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "catalog/read/worker_pool.h"
#include "gpu/engine/device_corpus.h"
#include "gpu/engine/plugin.h"

namespace modelstore {

struct DeviceVerdict {
  uint64_t blocks = 0, bytes = 0;
  std::vector<std::string> wrong;  // what differs, block by block
};
// Runs the blocks on slot 0 in as many batches as they take. Errors: Unavailable (the device failed).
Result<DeviceVerdict> VerifyDevice(const PluginSession& session, const std::vector<CorpusBlock>& blocks);

// Bytes of output a second; 0: not measured.
struct DeviceSpeed {
  double cpu = 0;                   // all threads of the pool
  double device = 0;                // from coded bytes in memory to decoded bytes in memory
  double kernels = 0;               // the device's own part of that
  double upload = 0, download = 0;  // bytes a second over the bus
};
// The best of some rounds on slot 0, both in turn. Blocks that do not fit a batch are left out of it on both sides.
// Errors: Unavailable.
Result<DeviceSpeed> MeasureDevice(const PluginSession& session, const std::vector<CorpusBlock>& blocks,
                                  WorkerPool& pool);

}  // namespace modelstore
