#include "codec/support/log.h"

#include <cstdio>

namespace modelstore {
namespace {

LogSink& Sink() {
  static LogSink sink;
  return sink;
}

void Write(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (Sink()) return Sink()(level, message, {fields.begin(), fields.size()});
  if (level < LogLevel::kWarning) return;
  std::string line = "modelstore: ";
  line += message;
  for (const auto& [name, value] : fields) {
    line += ' ';
    line += name;
    line += '=';
    line += value;
  }
  line += '\n';
  std::fputs(line.c_str(), stderr);
}

}  // namespace

void SetLogSink(LogSink sink) { Sink() = std::move(sink); }

// Never throws: what is logged is often that memory ran out.
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  try {
    Write(level, message, fields);
  } catch (...) {
    std::fputs("modelstore: a line of the log is lost, as there is no memory for it\n", stderr);
  }
}

}  // namespace modelstore
