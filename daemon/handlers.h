// The one table of requests (layer: daemon): the daemon serves it on a socket, `modelstore --store DIR` calls it in
// process.
//
// A request is a name and a JSON object, the answer a JSON document, so that both doors speak the same language.
// Handlers are thread-safe; a request that changes the store is refused (Locked) by the store's own lock, not here.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "catalog/read/catalog.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

struct Request {
  std::string_view parameters;  // JSON object
  JobControl* job = nullptr;    // progress, warnings and cancellation
};

struct Handler {
  std::string_view name;                                             // "push", "ls", …
  bool creates_store;                                                // may create a store that does not exist
  bool writes;                                                       // needs the store read-write
  std::function<Result<std::string>(Catalog&, const Request&)> run;  // JSON document
};

std::span<const Handler> Handlers();
const Handler* FindHandler(std::string_view name);

}  // namespace modelstore
