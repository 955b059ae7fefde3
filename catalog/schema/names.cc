// Which names models and their files may have.
#include "catalog/schema/records.h"

namespace modelstore {
namespace {

constexpr size_t kMaxComponentBytes = 255;
constexpr size_t kMaxModelNameBytes = 1024;
constexpr size_t kMaxFilePathBytes = 4096;

// Length of the well-formed UTF-8 sequence at the front of `s`, its code point in `code`; 0 when malformed.
size_t DecodeUtf8(std::string_view s, uint32_t* code) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) {
    *code = lead;
    return 1;
  }
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || s.size() < length) return 0;
  uint32_t v = lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    v = v << 6 | (byte(i) & 0x3f);
  }
  const bool overlong = (length == 3 && v < 0x800) || (length == 4 && v < 0x10000);
  if (overlong || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff)) return 0;
  *code = v;
  return length;
}

// Printable for a message even when the name is not.
std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 100;
  std::string out = "\"";
  for (const char c : name.substr(0, kShown)) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u < 0x7f) {
      out.push_back(c);
    } else {
      out += "\\x";
      out.push_back("0123456789abcdef"[u >> 4]);
      out.push_back("0123456789abcdef"[u & 15]);
    }
  }
  return out + (name.size() > kShown ? "…\"" : "\"");
}

Status CheckComponent(std::string_view component, bool allow_dash) {
  if (component.empty()) return InvalidArgument("has an empty part between '/'");
  if (component.size() > kMaxComponentBytes)
    return InvalidArgument("has a part longer than " + std::to_string(kMaxComponentBytes) + " bytes");
  if (component == "." || component == "..") return InvalidArgument("has a part '" + std::string(component) + "'");
  if (!allow_dash && component.front() == '-') return InvalidArgument("has a part that starts with '-'");
  while (!component.empty()) {
    uint32_t code = 0;
    const size_t length = DecodeUtf8(component, &code);
    if (length == 0) return InvalidArgument("is not UTF-8");
    if (code < 0x20 || (code >= 0x7f && code < 0xa0)) return InvalidArgument("has a control character");
    component.remove_prefix(length);
  }
  return OkStatus();
}

Status CheckPath(std::string_view path, std::string_view what, size_t max_bytes, bool allow_dash) {
  const auto named = [&](const Status& status) {
    return InvalidArgument(std::string(what) + " " + Quoted(path) + " " + std::string(status.message()));
  };
  if (path.empty()) return InvalidArgument(std::string(what) + " is empty");
  if (path.size() > max_bytes) return named(InvalidArgument("is longer than " + std::to_string(max_bytes) + " bytes"));
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (const Status status = CheckComponent(path.substr(begin, end - begin), allow_dash); !status.ok())
      return named(status);
    begin = end + 1;
  }
  return OkStatus();
}

}  // namespace

Status CheckModelName(std::string_view name) { return CheckPath(name, "model name", kMaxModelNameBytes, false); }
Status CheckFilePath(std::string_view path) { return CheckPath(path, "file path", kMaxFilePathBytes, true); }

}  // namespace modelstore
