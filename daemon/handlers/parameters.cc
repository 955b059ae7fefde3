#include "daemon/handlers/parameters.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "codec/json/json_text.h"

namespace modelstore {

using nlohmann::json;

struct Parameters::Object {
  json value;
};

namespace {

Status WrongType(std::string_view key, std::string_view expected, const json* found) {
  return InvalidArgument("parameter '" + std::string(key) + "': expected " + std::string(expected) + ", found " +
                         (found ? found->type_name() : "nothing"));
}

}  // namespace

Result<Parameters> Parameters::Parse(std::string_view text, std::initializer_list<std::string_view> known,
                                     std::span<const std::string_view> more) {
  auto object = std::make_shared<Object>();
  object->value = TryParseJson(text);
  if (!object->value.is_object()) return InvalidArgument("request parameters are not a JSON object");
  for (const auto& item : object->value.items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end() &&
        std::find(more.begin(), more.end(), item.key()) == more.end())
      return InvalidArgument("unknown parameter '" + item.key() + "'");
  }
  return Parameters(std::move(object));
}

Result<std::string> Parameters::String(std::string_view key, std::optional<std::string> fallback) const {
  const auto it = object_->value.find(std::string(key));
  if (it == object_->value.end()) {
    if (fallback) return *std::move(fallback);
    return WrongType(key, "a string", nullptr);
  }
  if (!it->is_string()) return WrongType(key, "a string", &*it);
  return it->get<std::string>();
}

Result<bool> Parameters::Bool(std::string_view key, std::optional<bool> fallback) const {
  const auto it = object_->value.find(std::string(key));
  if (it == object_->value.end()) {
    if (fallback) return *fallback;
    return WrongType(key, "a boolean", nullptr);
  }
  if (!it->is_boolean()) return WrongType(key, "a boolean", &*it);
  return it->get<bool>();
}

Result<std::optional<double>> Parameters::Number(std::string_view key) const {
  const auto it = object_->value.find(std::string(key));
  if (it == object_->value.end()) return std::optional<double>();
  if (!it->is_number()) return WrongType(key, "a number", &*it);
  return std::optional(it->get<double>());
}

Result<std::vector<std::string>> Parameters::Strings(std::string_view key) const {
  std::vector<std::string> out;
  const auto it = object_->value.find(std::string(key));
  if (it == object_->value.end()) return out;
  if (!it->is_array()) return WrongType(key, "an array of strings", &*it);
  for (const json& element : *it) {
    if (!element.is_string()) return WrongType(key, "an array of strings", &element);
    out.push_back(element.get<std::string>());
  }
  return out;
}

}  // namespace modelstore
