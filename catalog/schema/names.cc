// Which names models and their files may have.
#include "catalog/schema/records.h"
#include "codec/support/utf8.h"

namespace modelstore {
namespace {

constexpr size_t kMaxComponentBytes = 255;
constexpr size_t kMaxModelNameBytes = 1024;
constexpr size_t kMaxFilePathBytes = 4096;

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
    const CodePoint c = DecodeUtf8(component, 0);
    if (c.bytes == 0) return InvalidArgument("is not UTF-8");
    if (c.value < 0x20 || (c.value >= 0x7f && c.value < 0xa0)) return InvalidArgument("has a control character");
    component.remove_prefix(c.bytes);
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
