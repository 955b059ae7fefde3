// What the daemon has served since it started (layer: daemon/service). Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

struct RequestCount {
  uint64_t requests = 0;
  double seconds = 0;
};

struct ServerCounts {
  // By request ("other" for what is none) and how it ended.
  std::map<std::pair<std::string, StatusCode>, RequestCount> requests;
  uint64_t connections = 0;
  uint64_t refused_connections = 0;  // too many at once
  uint64_t sent_bytes = 0;           // of answers
  uint64_t pushed_bytes = 0;         // of the files of published pushes
  uint64_t stored_bytes = 0;         // what those added to the store
  uint64_t clients = 0;              // now
};

class ServerCounters {
 public:
  void Connected() {
    Change([](ServerCounts& c) { ++c.connections, ++c.clients; });
  }
  void Disconnected() {
    Change([](ServerCounts& c) { --c.clients; });
  }
  void Refused() {
    Change([](ServerCounts& c) { ++c.refused_connections; });
  }
  void Served(std::string_view request, StatusCode code, double seconds, uint64_t sent_bytes) {
    Change([&](ServerCounts& c) {
      RequestCount& count = c.requests[{std::string(request), code}];
      ++count.requests;
      count.seconds += seconds;
      c.sent_bytes += sent_bytes;
    });
  }
  void Pushed(uint64_t logical_bytes, uint64_t stored_bytes) {
    Change([&](ServerCounts& c) { c.pushed_bytes += logical_bytes, c.stored_bytes += stored_bytes; });
  }
  ServerCounts counts() const {
    const MutexLock lock(mutex_);
    return counts_;
  }

 private:
  template <typename F>
  void Change(const F& change) {
    const MutexLock lock(mutex_);
    change(counts_);
  }

  mutable Mutex mutex_;
  ServerCounts counts_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
