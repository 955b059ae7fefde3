#include "daemon/service/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

namespace modelstore {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

uint64_t ResidentBytes() {
  unsigned long long size = 0, resident = 0;
  FILE* const file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  const bool read = std::fscanf(file, "%llu %llu", &size, &resident) == 2;
  std::fclose(file);
  return read ? resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

class Families {
 public:
  using Labels = std::vector<ClientMetric::Label>;

  void Counter(const char* name, const char* help) { Begin(MetricType::Counter, name, help); }
  void Counter(const char* name, const char* help, uint64_t value) {
    Counter(name, help);
    Add({}, static_cast<double>(value));
  }
  void Gauge(const char* name, const char* help, uint64_t value, Labels labels = {}) {
    Begin(MetricType::Gauge, name, help);
    Add(std::move(labels), static_cast<double>(value));
  }
  // One more series of the family begun last.
  void Add(Labels labels, double value) {
    MetricFamily& family = families_.back();
    ClientMetric metric;
    metric.label = std::move(labels);
    (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    family.metric.push_back(std::move(metric));
  }
  std::string Text() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return out.str();
  }

 private:
  void Begin(MetricType type, const char* name, const char* help) { families_.push_back({name, help, type, {}}); }

  std::vector<MetricFamily> families_;
};

void AddServer(const ServerCounts& server, Families* out) {
  out->Counter("modelstore_requests_total", "Requests that ended, by their answer.");
  std::map<std::string, double> seconds;
  for (const auto& [key, count] : server.requests) {
    const auto& [request, code] = key;
    out->Add({{"request", request}, {"code", std::string(StatusCodeName(code))}}, static_cast<double>(count.requests));
    seconds[request] += count.seconds;
  }
  out->Counter("modelstore_request_seconds_total", "Time from a request to its answer.");
  for (const auto& [request, sum] : seconds) out->Add({{"request", request}}, sum);
  out->Counter("modelstore_pushed_bytes_total", "Bytes of the files of published pushes.", server.pushed_bytes);
  out->Counter("modelstore_stored_bytes_total", "Bytes that published pushes added to the store.", server.stored_bytes);
  out->Counter("modelstore_connections_total", "Connections that were served.", server.connections);
  out->Counter("modelstore_refused_connections_total", "Connections refused because there were too many.",
               server.refused_connections);
  out->Counter("modelstore_sent_bytes_total", "Bytes of answers, exported files included.", server.sent_bytes);
  out->Gauge("modelstore_clients", "Connections now.", server.clients);
}

void AddMount(const MountStats& mount, Families* out) {
  out->Counter("modelstore_mount_reads_total", "Reads that the kernel asked the mount for.", mount.reads);
  out->Counter("modelstore_mount_read_bytes_total", "Bytes that the mount answered.", mount.read_bytes);
  out->Counter("modelstore_mount_read_errors_total", "Opens and reads that failed.", mount.errors);
  out->Gauge("modelstore_mount_open_files", "Files open on the mount, mapped ones included.", mount.open_files);
}

void AddReading(const ReadStats& reading, Families* out) {
  out->Gauge("modelstore_cache_bytes", "Decoded blocks in the cache.", reading.cache_bytes);
  out->Gauge("modelstore_cache_capacity_bytes", "Most that decoded blocks and decodes under way may take.",
             reading.cache_capacity_bytes);
  out->Counter("modelstore_cache_hits_total", "Blocks found decoded.", reading.hits);
  out->Counter("modelstore_cache_misses_total", "Blocks that had to be decoded.", reading.misses);
  out->Counter("modelstore_cache_waits_total", "Blocks taken from a decode that somebody else had under way.",
               reading.waits);
  out->Counter("modelstore_decoded_blocks_total", "Blocks decoded.", reading.decoded_blocks);
  out->Counter("modelstore_decoded_bytes_total", "Bytes of those, decoded.", reading.decoded_bytes);
  out->Counter("modelstore_prefetched_blocks_total", "Blocks decoded ahead of a reader.", reading.prefetched_blocks);
}

void AddGpu(const GpuState& gpu, Families* out) {
  out->Gauge("modelstore_gpu_used", "1 when a GPU decodes what is read ahead.",
             gpu.kind == GpuState::Kind::kUsed ? 1 : 0);
  out->Counter("modelstore_gpu_batches_total", "Batches that a GPU decoded.", gpu.batches);
  out->Counter("modelstore_gpu_decoded_bytes_total", "Bytes of modelstore_decoded_bytes_total that a GPU decoded.",
               gpu.decoded_bytes);
  out->Counter("modelstore_gpu_failed_batches_total", "Batches that the CPU had to decode because a GPU failed.",
               gpu.failed_batches);
  out->Counter("modelstore_gpu_failed_blocks_total", "Blocks that did not decode on a GPU: damaged ones.",
               gpu.failed_blocks);
}

}  // namespace

std::string MetricsText(const MetricsSample& sample) {
  Families out;
  out.Gauge("modelstore_build_info", "Always 1; the version is a label.", 1, {{"version", MODELSTORE_VERSION}});
  AddServer(sample.server, &out);
  AddMount(sample.mount, &out);
  AddReading(sample.reading, &out);
  AddGpu(sample.gpu, &out);
  out.Gauge("modelstore_jobs", "Requests being worked on.", sample.jobs);
  out.Gauge("modelstore_models", "Models in the store.", sample.models);
  out.Gauge("modelstore_store_disk_bytes", "What the store's folder takes on disk.", sample.store_disk_bytes);
  out.Gauge("modelstore_memory_budget_bytes", "Bound on caches, RocksDB and jobs together.",
            sample.memory_budget_bytes);
  out.Gauge("modelstore_memory_resident_bytes", "Resident memory of the daemon.", ResidentBytes());
  return out.Text();
}

}  // namespace modelstore
