#include "codec/support/utf8.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace modelstore {

CodePoint DecodeUtf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() - at < length) return {};
  uint32_t value = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3f);
  }
  constexpr std::array<uint32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kSmallest[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return {};
  return {value, length};
}

bool TerminalObeys(uint32_t c) {
  if (c >= 0x20 && c < 0x7f) return false;
  // Controls, marks of direction, and what Unicode calls default-ignorable: two texts that differ in those alone look
  // the same. Variation selectors stay: emoji have them.
  struct Range {
    uint32_t first, last;
  };
  static constexpr Range kRanges[] = {
      {0x00, 0x1f},     {0x7f, 0x9f},     {0xad, 0xad},     {0x34f, 0x34f},     {0x61c, 0x61c},    {0x115f, 0x1160},
      {0x17b4, 0x17b5}, {0x180b, 0x180f}, {0x200b, 0x200f}, {0x2028, 0x202e},   {0x2060, 0x206f},  {0x3164, 0x3164},
      {0xfeff, 0xfeff}, {0xffa0, 0xffa0}, {0xfff0, 0xfffb}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff}};
  return std::ranges::any_of(kRanges, [&](const Range& range) { return c >= range.first && c <= range.last; });
}

std::string EscapeInJson(std::string_view document) {
  std::string out;
  out.reserve(document.size());
  for (size_t at = 0; at < document.size();) {
    const CodePoint c = DecodeUtf8(document, at);
    if (c.value >= 0x7f && TerminalObeys(c.value)) {
      char code[16];
      if (c.value <= 0xffff) {
        std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c.value));
      } else {
        const unsigned above = c.value - 0x10000;
        std::snprintf(code, sizeof code, "\\u%04x\\u%04x", 0xd800 + (above >> 10), 0xdc00 + (above & 0x3ff));
      }
      out += code;
    } else {
      out += document.substr(at, std::max<size_t>(c.bytes, 1));
    }
    at += std::max<size_t>(c.bytes, 1);
  }
  return out;
}

}  // namespace modelstore
