// The one table of requests (layer: daemon/handlers): the daemon serves it on a socket, `modelstore --store DIR` calls
// it in process.
//
// A request is a name and a JSON object, the answer a JSON document, so that both doors speak the same language. What
// does not fit JSON (files to store, files to write) comes beside it. Handlers are thread-safe. They check the caller's
// rights; the socket only says who the caller is.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "catalog/read/catalog.h"
#include "catalog/write/export.h"
#include "catalog/write/push.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"
#include "daemon/handlers/caller.h"

namespace modelstore {

struct Request {
  std::string_view parameters;                 // JSON object
  JobControl* job = nullptr;                   // progress, warnings and cancellation
  const Caller* caller = nullptr;              // who asks
  const SourceTree* source = nullptr;          // push: the files, opened by the caller; null: `path` in the parameters
  const SourceTree* moments = nullptr;         // push, compact, derive: one file, opened by the caller
  ExportSink* sink = nullptr;                  // export: where the files go; null: `dir` in the parameters
  std::span<const std::string> layer_names{};  // derive: naming schemes of the daemon's configuration
  // push: told what was stored. Null: nobody counts.
  std::function<void(const PushReport& report)> on_pushed = nullptr;
  // status: adds to the document what only the daemon knows. Null: there is no daemon.
  std::function<std::string(const std::string& document)> complete_status = nullptr;
};

// How many of a kind of request a daemon works on at once; the others wait their turn.
enum class RequestLimit {
  kNone,         // it takes little, or is kept from running twice by the catalog's own locks
  kPush,         // it takes a share of the memory for pushes
  kWholeModels,  // it reads models from front to back
  kDocument,     // it builds a document about all models
};

// Which opened files may come with a request.
enum class RequestFiles { kNone, kMoments, kTreeAndMoments };

// A field that every row of the table says: a row without the field does not compile.
template <typename T>
class Chosen {
 public:
  constexpr Chosen(T value) : value_(value) {}
  constexpr operator T() const { return value_; }

 private:
  T value_;
};

// Everything that tells requests apart for whoever serves them: nobody compares names.
struct Handler {
  std::string_view name;       // "push", "ls", …
  bool creates_store = false;  // may create a store that does not exist
  bool writes = false;         // needs the store read-write
  Chosen<RequestLimit> limit;
  RequestFiles files = RequestFiles::kNone;
  // Answered at once by a daemon that is well, even a busy one: a client need not wait long.
  bool is_quick = false;
  std::function<Result<std::string>(Catalog&, const Request&)> run;  // JSON document
};

std::span<const Handler> Handlers();
const Handler* FindHandler(std::string_view name);

}  // namespace modelstore
