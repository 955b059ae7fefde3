// What the metrics' HTTP server answers to a request's head (layer: daemon/service). Pure functions.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace modelstore {

constexpr size_t kMaxHttpHead = 4096;

// True once `received` needs no more bytes to be answered: its head has ended, or has become too long.
bool HttpHeadEnded(std::string_view received);

// The whole answer to such a request: GET and HEAD of /metrics are answered with what `text` returns, anything else
// with an error of HTTP. The connection is to be closed after it.
std::string HttpAnswer(std::string_view received, const std::function<std::string()>& text);

}  // namespace modelstore
