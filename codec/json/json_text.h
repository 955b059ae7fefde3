// JSON between text and nlohmann's values (layer: codec/json). Its parser and its printer are large templates: they are
// compiled here, once, and not in each of the files that read or write a document.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace modelstore {

// Throws nlohmann::json::parse_error when the text is no JSON: for documents that this program wrote.
nlohmann::json ParseJson(std::string_view text);
nlohmann::ordered_json ParseOrderedJson(std::string_view text);

// For a text from elsewhere: a discarded value (is_discarded()) when it is no JSON.
nlohmann::json TryParseJson(std::string_view text);
nlohmann::ordered_json TryParseOrderedJson(std::string_view text);

enum class JsonStyle {
  kLine,       // one line without blanks
  kAsciiLine,  // the same, other characters than ASCII's written as \u....
  kIndented,   // by two blanks a level
};

// What is no UTF-8 in a string becomes U+FFFD.
std::string JsonText(const nlohmann::json& value, JsonStyle style = JsonStyle::kLine);
std::string JsonText(const nlohmann::ordered_json& value, JsonStyle style = JsonStyle::kLine);

}  // namespace modelstore
