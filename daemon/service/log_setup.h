// The daemon's log: one line an event on stderr, as text or JSON (layer: daemon/service).
//
// text: `TIME LEVEL MESSAGE KEY=VALUE …`; where stderr goes to the journal, its priority in place of the time.
// JSON: {"time", "level", "message", …}. Values come from anyone: control characters are escaped, so that a line stays
// a line.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "codec/support/log.h"
#include "daemon/service/config.h"

namespace modelstore {

// Sets the sink of codec/support/log.h while it lives. Lines below `level` are dropped.
class LogSetup {
 public:
  LogSetup(LogFormat format, LogLevel level);
  ~LogSetup();
  LogSetup(const LogSetup&) = delete;
  LogSetup& operator=(const LogSetup&) = delete;
};

// A line without its end; `time` (RFC 3339) may be empty in text.
std::string LogLine(LogFormat format, std::string_view time, LogLevel level, std::string_view message,
                    std::span<const LogField> fields);

}  // namespace modelstore
