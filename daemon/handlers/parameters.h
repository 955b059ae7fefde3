// A request's JSON object as typed values (layer: daemon; private to the handlers).
//
// Keeps nlohmann out of headers. Immutable after Parse; thread-safe.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

class Parameters {
 public:
  // Errors: InvalidArgument when `json` is not an object or has a key that is neither in `known` nor in `more` (it is
  // named).
  static Result<Parameters> Parse(std::string_view json, std::initializer_list<std::string_view> known,
                                  std::span<const std::string_view> more = {});

  // Each: InvalidArgument naming the key when it has another type, or is missing and there is no fallback.
  Result<std::string> String(std::string_view key, std::optional<std::string> fallback = std::nullopt) const;
  Result<bool> Bool(std::string_view key, std::optional<bool> fallback = std::nullopt) const;
  Result<std::optional<double>> Number(std::string_view key) const;      // missing: nothing
  Result<std::vector<std::string>> Strings(std::string_view key) const;  // missing: empty

 private:
  struct Object;
  explicit Parameters(std::shared_ptr<const Object> object) : object_(std::move(object)) {}
  std::shared_ptr<const Object> object_;
};

}  // namespace modelstore
