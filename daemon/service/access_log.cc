#include "daemon/service/access_log.h"

#include <cstdio>
#include <string>

#include "codec/support/log.h"

namespace modelstore {

void LogAccess(const AccessRecord& record) {
  char seconds[32];
  std::snprintf(seconds, sizeof(seconds), "%.3f", record.seconds);
  Log(LogLevel::kInfo, "access",
      {{"model", record.model},
       {"path", record.path},
       {"uid", std::to_string(record.uid)},
       {"pid", std::to_string(record.pid)},
       {"process", record.process},
       {"bytes", std::to_string(record.file_bytes)},
       {"read_bytes", std::to_string(record.read_bytes)},
       {"reads", std::to_string(record.reads)},
       {"errors", std::to_string(record.errors)},
       {"seconds", seconds}});
}

}  // namespace modelstore
