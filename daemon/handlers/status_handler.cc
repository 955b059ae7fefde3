#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "codec/json/json_text.h"
#include "codec/kernels/cpu_target.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

// Pages of this process in memory; null when the system does not say.
Json ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  if (!(statm >> size >> resident)) return nullptr;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

Result<std::string> HandleStatus(Catalog& catalog, const Request& request) {
  RETURN_IF_ERROR(Parameters::Parse(request.parameters, {}).status());
  const ReadStats stats = catalog.reader().stats();
  Json out;
  out["version"] = MODELSTORE_VERSION;
  out["store"] = catalog.dir();
  out["mount"] = nullptr;
  out["read_ahead_kb"] = nullptr;
  out["memory_budget_bytes"] = catalog.memory_budget_bytes();
  out["resident_bytes"] = ResidentBytes();
  out["cache"] = {{"bytes", stats.cache_bytes},
                  {"capacity_bytes", stats.cache_capacity_bytes},
                  {"hits", stats.hits},
                  {"misses", stats.misses},
                  {"waits", stats.waits},
                  {"decoded_blocks", stats.decoded_blocks},
                  {"decoded_bytes", stats.decoded_bytes},
                  {"prefetched_blocks", stats.prefetched_blocks}};
  out["decode"] = {{"target", CpuTargetName(CurrentCpuTarget())}, {"gpu", nullptr}};
  std::string document = JsonText(out);
  return request.complete_status ? request.complete_status(document) : document;
}

}  // namespace modelstore
