#include "cli/format.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "codec/support/utf8.h"

namespace modelstore {
namespace {

template <typename... Args>
std::string Printf(const char* format, Args... args) {
  char text[128];
  const int n = std::snprintf(text, sizeof text, format, args...);
  return std::string(text, static_cast<size_t>(std::clamp(n, 0, int{sizeof text} - 1)));
}

bool IsCombining(uint32_t c) {
  return (c >= 0x300 && c <= 0x36f) || (c >= 0x200b && c <= 0x200d) || (c >= 0x20d0 && c <= 0x20ff) ||
         (c >= 0xfe00 && c <= 0xfe0f);
}

bool IsWide(uint32_t c) {
  return (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0xa4cf) || (c >= 0xac00 && c <= 0xd7a3) ||
         (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) || (c >= 0xff00 && c <= 0xff60) ||
         (c >= 0xffe0 && c <= 0xffe6) || (c >= 0x1f300 && c <= 0x1faff) || (c >= 0x20000 && c <= 0x3fffd);
}

std::string Quoted(std::string_view text) { return std::string("'").append(text) += "'"; }

std::string TrimmedRight(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace

std::string Painted(std::string_view text, Tone tone, const Style& style) {
  std::string_view code;
  switch (tone) {
    case Tone::kPlain:
      break;
    case Tone::kBold:
      code = "1";
      break;
    case Tone::kDim:
      code = "2";
      break;
    case Tone::kGood:
      code = "32";
      break;
    case Tone::kWarn:
      code = "33";
      break;
    case Tone::kBad:
      code = "31";
      break;
  }
  if (!style.color || code.empty()) return std::string(text);
  return "\x1b[" + std::string(code) + "m" + std::string(text) + "\x1b[0m";
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return std::to_string(bytes) + " B";
  constexpr std::array<const char*, 6> kUnits = {"kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  // 999.95 would print as "1000.0".
  while (value >= 999.95 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return Printf("%.1f %s", value, kUnits[unit]);
}

std::string ExactBytes(uint64_t bytes) {
  const std::string digits = std::to_string(bytes);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string Percent(double fraction) { return Printf("%.1f %%", fraction * 100); }

std::string Ratio(uint64_t logical_bytes, uint64_t stored_bytes) {
  if (logical_bytes == 0 || stored_bytes == 0) return "-";
  const double ratio = static_cast<double>(logical_bytes) / static_cast<double>(stored_bytes);
  return ratio >= 99.95 ? Printf("%.0fx", ratio) : Printf("%.1fx", ratio);
}

std::string DriftText(double drift) { return Printf("%.3g", drift); }

std::string HumanSeconds(double seconds) {
  if (seconds < 59.95) return Printf("%.1f s", seconds);
  const auto whole = static_cast<uint64_t>(std::llround(seconds));
  if (whole < 3600) return Printf("%llu min %02llu s", whole / 60ull, whole % 60ull);
  return Printf("%llu h %02llu min", whole / 3600ull, whole / 60ull % 60ull);
}

std::string Clock(double seconds) {
  const auto whole = static_cast<uint64_t>(std::ceil(std::clamp(seconds, 0.0, 359999.0)));
  if (whole < 3600) return Printf("%llu:%02llu", whole / 60ull, whole % 60ull);
  return Printf("%llu:%02llu:%02llu", whole / 3600ull, whole / 60ull % 60ull, whole % 60ull);
}

std::string Plural(uint64_t count, std::string_view noun) {
  return ExactBytes(count) + " " + std::string(noun) + (count == 1 ? "" : "s");
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  if (shape.empty()) return "scalar";
  std::string out;
  for (const uint64_t dimension : shape) out += (out.empty() ? "" : " x ") + std::to_string(dimension);
  return out;
}

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeUtf8(text, at);
    if (c.bytes == 0) {
      out += Printf("\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(text[at])));
      ++at;
      continue;
    }
    if (TerminalObeys(c.value))
      out += Printf(c.value < 0x80 ? "\\x%02x" : c.value <= 0xffff ? "\\u%04x" : "\\U%08x", c.value);
    else
      out += text.substr(at, c.bytes);
    at += c.bytes;
  }
  return out;
}

size_t DisplayWidth(std::string_view text) {
  size_t columns = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeUtf8(text, at);
    columns += c.bytes == 0 || !IsCombining(c.value) ? 1 : 0;
    if (c.bytes != 0 && IsWide(c.value)) ++columns;
    at += std::max<size_t>(c.bytes, 1);
  }
  return columns;
}

Result<uint64_t> ParseCount(std::string_view text, uint64_t low, uint64_t high) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high) return value;
  return InvalidArgument(Quoted(text) + " is not a number from " + std::to_string(low) + " to " + std::to_string(high));
}

std::string DefaultModelName(std::string_view path, std::string_view resolved) {
  const auto last_component = [](std::string_view p) {
    while (p.ends_with('/')) p.remove_suffix(1);
    return p.substr(p.find_last_of('/') + 1);
  };
  const std::string_view typed = last_component(path);
  if (!typed.empty() && typed != "." && typed != "..") return std::string(typed);
  return std::string(last_component(resolved));
}

void Table::Row(std::vector<Cell> cells) {
  assert(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render(const Style& style) const {
  std::vector<size_t> widths;
  for (const Column& column : columns_) widths.push_back(DisplayWidth(column.heading));
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i].text));

  const auto line = [&](const std::vector<Cell>& cells) {
    std::string out;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string padding(widths[i] - DisplayWidth(cells[i].text), ' ');
      if (i != 0) out += "  ";
      if (columns_[i].align == Align::kRight) out += padding;
      out += Painted(cells[i].text, cells[i].tone, style);
      if (columns_[i].align == Align::kLeft) out += padding;
    }
    return TrimmedRight(std::move(out)) + "\n";
  };
  std::vector<Cell> headings;
  for (const Column& column : columns_) headings.push_back({column.heading, Tone::kDim});
  std::string out = line(headings);
  for (const auto& row : rows_) out += line(row);
  return out;
}

}  // namespace modelstore
