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
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0x061c || c == 0xfeff;
}

std::string EscapeInJson(std::string_view document) {
  std::string out;
  out.reserve(document.size());
  for (size_t at = 0; at < document.size();) {
    const CodePoint c = DecodeUtf8(document, at);
    if (c.value >= 0x7f && TerminalObeys(c.value)) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c.value & 0xffff));
      out += code;
    } else {
      out += document.substr(at, std::max<size_t>(c.bytes, 1));
    }
    at += std::max<size_t>(c.bytes, 1);
  }
  return out;
}

}  // namespace modelstore
