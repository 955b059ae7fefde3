// What Prometheus is told (layer: daemon/service; docs/metrics.md lists it). Stateless; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "catalog/read/read_engine.h"
#include "daemon/service/counters.h"
#include "fuse/mount.h"
#include "gpu/engine/gpu_decoder.h"

namespace modelstore {

// What its owners say when somebody scrapes: nothing is paid for metrics that nobody reads.
struct MetricsSample {
  ServerCounts server;
  MountStats mount;
  ReadStats reading;
  uint64_t jobs = 0;
  uint64_t models = 0, store_disk_bytes = 0;
  uint64_t memory_budget_bytes = 0;
  GpuState gpu;
};

// Prometheus' text format, version 0.0.4. Adds what the process itself is: its version, its resident memory.
std::string MetricsText(const MetricsSample& sample);

}  // namespace modelstore
