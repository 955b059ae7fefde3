#include "codec/json/json_text.h"

#include <nlohmann/json.hpp>

namespace modelstore {
namespace {

template <typename Value>
std::string Text(const Value& value, JsonStyle style) {
  return value.dump(style == JsonStyle::kIndented ? 2 : -1, ' ', style == JsonStyle::kAsciiLine,
                    Value::error_handler_t::replace);
}

}  // namespace

nlohmann::json ParseJson(std::string_view text) { return nlohmann::json::parse(text); }
nlohmann::ordered_json ParseOrderedJson(std::string_view text) { return nlohmann::ordered_json::parse(text); }

nlohmann::json TryParseJson(std::string_view text) {
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}
nlohmann::ordered_json TryParseOrderedJson(std::string_view text) {
  return nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
}

std::string JsonText(const nlohmann::json& value, JsonStyle style) { return Text(value, style); }
std::string JsonText(const nlohmann::ordered_json& value, JsonStyle style) { return Text(value, style); }

}  // namespace modelstore
