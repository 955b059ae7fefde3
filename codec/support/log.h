// Log lines for whoever runs the program (layer: codec/support): a message and named values.
//
// Thread-safe. Without a sink, lines of kWarning and above go to stderr as "modelstore: MESSAGE"; the daemon installs
// its structured log.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace modelstore {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
using LogField = std::pair<std::string_view, std::string>;
using LogSink = std::function<void(LogLevel level, std::string_view message, std::span<const LogField> fields)>;

// Set before other threads log, and reset (nullptr) after they ended.
void SetLogSink(LogSink sink);
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

}  // namespace modelstore
