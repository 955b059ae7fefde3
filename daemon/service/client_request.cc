#include "daemon/service/client_request.h"

#include <nlohmann/json.hpp>

#include "daemon/protocol/wire.h"

namespace modelstore {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 16;  // writing JSON again recurses
constexpr size_t kMaxTextBytes = 4096;
constexpr uint64_t kMaxMode = 0777;
constexpr size_t kMaxParts = 32'768;  // values, keys, ends: a tree takes many times the memory of its text

Result<Json> ParseObject(std::string_view text) {
  bool too_deep = false;
  size_t parts = 0;
  // What is refused here is read on, but not kept.
  const auto check = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return ++parts <= kMaxParts && !too_deep;
  };
  Json json = Json::parse(text, check, /*allow_exceptions=*/false);
  if (too_deep) return InvalidArgument("a request nested deeper than " + std::to_string(kMaxDepth) + " levels");
  if (parts > kMaxParts)
    return InvalidArgument("a request with more than " + std::to_string(kMaxParts) + " values and keys");
  if (!json.is_object()) return InvalidArgument("a request that is not a JSON object");
  return json;
}

enum class TooLong { kRefuse, kCut };

// A text of the request; `key` may be missing.
Result<std::string> TextOf(const Json& json, const char* key, TooLong too_long = TooLong::kRefuse) {
  const auto it = json.find(key);
  if (it == json.end()) return std::string();
  if (!it->is_string()) return InvalidArgument("the request's '" + std::string(key) + "' is not a string");
  const auto& text = it->get_ref<const std::string&>();
  if (text.size() > kMaxTextBytes && too_long == TooLong::kRefuse)
    return InvalidArgument("the request's '" + std::string(key) + "' is longer than " + std::to_string(kMaxTextBytes) +
                           " bytes");
  return text.substr(0, kMaxTextBytes);
}

Status CheckProtocol(const Json& json) {
  const auto it = json.find("protocol");
  if (it == json.end() || !it->is_number_unsigned())
    return InvalidArgument("a request without the number of its protocol");
  const auto protocol = it->get<uint64_t>();
  if (protocol == kProtocolVersion) return OkStatus();
  return Unsupported("the client speaks protocol " + std::to_string(protocol) + ", this modelstored (" +
                     MODELSTORE_VERSION + ") speaks protocol " + std::to_string(kProtocolVersion) +
                     "; use the modelstore that was installed with it");
}

std::string ModelOf(const Json& parameters) {
  for (const char* key : {"name", "from"}) {
    const auto it = parameters.find(key);
    if (it != parameters.end() && it->is_string()) return it->get<std::string>().substr(0, kMaxTextBytes);
  }
  return "";
}

}  // namespace

Result<ClientRequest> ParseClientRequest(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(text));
  RETURN_IF_ERROR(CheckProtocol(json));
  ClientRequest out;
  ASSIGN_OR_RETURN(out.version, TextOf(json, "version"));
  ASSIGN_OR_RETURN(out.request, TextOf(json, "request"));
  if (out.request.empty()) return InvalidArgument("a request without its name");
  const auto parameters = json.find("parameters");
  if (parameters == json.end() || !parameters->is_object())
    return InvalidArgument("a request without an object of parameters");
  out.parameters = parameters->dump(-1, ' ', false, Json::error_handler_t::replace);
  out.model = ModelOf(*parameters);
  if (const auto files = json.find("files"); files != json.end()) {
    if (!files->is_number_unsigned()) return InvalidArgument("the request's 'files' is not a count");
    out.files = files->get<uint64_t>();
  }
  if (const auto moments = json.find("moments"); moments != json.end()) {
    if (!moments->is_boolean()) return InvalidArgument("the request's 'moments' is neither true nor false");
    out.moments = moments->get<bool>();
  }
  return out;
}

Result<std::vector<ClientFile>> ParseClientFiles(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(text));
  const auto files = json.find("files");
  if (files == json.end()) {
    RETURN_IF_ERROR(ParseLaterFrame(text).status());
    return InvalidArgument("an answer that nobody asked for came in place of a push's files");
  }
  if (!files->is_array()) return InvalidArgument("the request's 'files' is not an array");
  std::vector<ClientFile> out;
  for (const Json& entry : *files) {
    if (!entry.is_object()) return InvalidArgument("one of the request's files is not an object");
    ClientFile& file = out.emplace_back();
    ASSIGN_OR_RETURN(file.path, TextOf(entry, "path"));
    ASSIGN_OR_RETURN(file.shown_as, TextOf(entry, "shown_as", TooLong::kCut));
    if (file.shown_as.empty()) file.shown_as = file.path;
    if (const auto mode = entry.find("mode"); mode != entry.end()) {
      if (!mode->is_number_unsigned() || mode->get<uint64_t>() > kMaxMode)
        return InvalidArgument("the 'mode' of one of the request's files is not permission bits");
      file.mode = mode->get<uint32_t>();
    }
  }
  return out;
}

Result<LaterFrame> ParseLaterFrame(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(text));
  const auto cancel = json.find("cancel");
  if (cancel != json.end() && cancel->is_boolean() && cancel->get<bool>()) return Cancelled("cancelled by the client");
  if (const auto opened = json.find("opened"); opened != json.end() && opened->is_boolean() && opened->get<bool>())
    return LaterFrame();
  if (const auto failure = json.find("not_opened"); failure != json.end() && failure->is_object()) {
    ASSIGN_OR_RETURN(const std::string code, TextOf(*failure, "code"));
    ASSIGN_OR_RETURN(std::string message, TextOf(*failure, "message", TooLong::kCut));
    const StatusCode known = StatusCodeFromName(code);
    return LaterFrame{Status(known == StatusCode::kOk ? StatusCode::kInternal : known, std::move(message))};
  }
  return InvalidArgument("what came after the request is not one of protocol " + std::to_string(kProtocolVersion));
}

}  // namespace modelstore
