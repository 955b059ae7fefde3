// Text that came from somebody else, read one code point at a time (layer: codec/support). Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace modelstore {

// The code point that begins at text[at], and how many bytes it takes: 0 where there is no well-formed UTF-8.
struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;
};
CodePoint DecodeUtf8(std::string_view text, size_t at);

// True for what a terminal acts upon or hides instead of showing it: control characters, those that turn the direction
// of text or break lines, and those that nobody sees.
bool TerminalObeys(uint32_t code_point);

// A JSON document of the same meaning in which such code points are escaped; those of ASCII are never within its
// strings.
std::string EscapeInJson(std::string_view document);

}  // namespace modelstore
