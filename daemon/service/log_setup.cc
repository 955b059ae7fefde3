#include "daemon/service/log_setup.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>

#include "codec/json/json_text.h"
#include "codec/support/utf8.h"

namespace modelstore {
namespace {

constexpr std::string_view kLevelNames[] = {"debug", "info", "warning", "error"};
// Of syslog, which the journal reads from "<N>" at the start of a line.
constexpr int kPriorities[] = {7, 6, 4, 3};

// Now in UTC, with milliseconds.
std::string Timestamp() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[40];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(milliseconds));
  return text;
}

bool IsPlain(std::string_view value) {
  return !value.empty() && value.find_first_of("\" =\\") == std::string_view::npos &&
         std::none_of(value.begin(), value.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

// What a terminal obeys and what is not UTF-8 as in C, \ and, within quotes, ".
void AppendEscaped(std::string* out, std::string_view value, bool quoted) {
  for (size_t at = 0; at < value.size();) {
    const CodePoint c = DecodeUtf8(value, at);
    const size_t bytes = std::max<size_t>(c.bytes, 1);
    if (c.bytes == 0 || TerminalObeys(c.value)) {
      const unsigned shown = c.bytes == 0 ? static_cast<unsigned char>(value[at]) : c.value;
      char code[16];
      std::snprintf(code, sizeof code, shown < 0x100 ? "\\x%02x" : shown <= 0xffff ? "\\u%04x" : "\\U%08x", shown);
      *out += code;
    } else {
      if (value[at] == '\\' || (quoted && value[at] == '"')) *out += '\\';
      *out += value.substr(at, bytes);
    }
    at += bytes;
  }
}

std::string TextLine(std::string_view time, LogLevel level, std::string_view message,
                     std::span<const LogField> fields) {
  std::string line(time);
  if (!line.empty()) line += ' ';
  line += kLevelNames[static_cast<size_t>(level)];
  line += ' ';
  AppendEscaped(&line, message, /*quoted=*/false);
  for (const auto& [name, value] : fields) {
    line += ' ';
    line += name;
    line += '=';
    const bool quoted = !IsPlain(value);
    if (quoted) line += '"';
    AppendEscaped(&line, value, quoted);
    if (quoted) line += '"';
  }
  return line;
}

// sd-daemon(3): DEVICE:INODE of the stream that goes to the journal, which notes the time itself.
bool StderrIsJournal() {
  const char* const stream = std::getenv("JOURNAL_STREAM");
  struct stat found;
  return stream != nullptr && fstat(STDERR_FILENO, &found) == 0 &&
         std::to_string(found.st_dev) + ":" + std::to_string(found.st_ino) == stream;
}

std::string JsonLine(std::string_view time, LogLevel level, std::string_view message,
                     std::span<const LogField> fields) {
  nlohmann::ordered_json line;
  line["time"] = time;
  line["level"] = kLevelNames[static_cast<size_t>(level)];
  line["message"] = message;
  for (const auto& [name, value] : fields) line[std::string(name)] = value;
  return JsonText(line, JsonStyle::kAsciiLine);
}

}  // namespace

std::string LogLine(LogFormat format, std::string_view time, LogLevel level, std::string_view message,
                    std::span<const LogField> fields) {
  return format == LogFormat::kJson ? JsonLine(time, level, message, fields) : TextLine(time, level, message, fields);
}

LogSetup::LogSetup(LogFormat format, LogLevel level) {
  auto logger = std::make_shared<spdlog::logger>("modelstored", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%v");
  logger->flush_on(spdlog::level::trace);
  const bool journal = format == LogFormat::kText && StderrIsJournal();
  const bool stamped = !journal;
  SetLogSink([=](LogLevel of_line, std::string_view message, std::span<const LogField> fields) {
    if (of_line < level) return;
    std::string line = journal ? "<" + std::to_string(kPriorities[static_cast<size_t>(of_line)]) + ">" : "";
    line += LogLine(format, stamped ? Timestamp() : "", of_line, message, fields);
    logger->log(spdlog::level::info, spdlog::string_view_t(line));
  });
}

LogSetup::~LogSetup() { SetLogSink(nullptr); }

}  // namespace modelstore
