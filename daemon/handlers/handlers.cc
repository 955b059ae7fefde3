#include "daemon/handlers/handlers.h"

#include <array>

#include "daemon/handlers/handler_groups.h"

namespace modelstore {

std::span<const Handler> Handlers() {
  static const std::array<Handler, 12> kHandlers = {{
      {.name = "push",
       .creates_store = true,
       .writes = true,
       .limit = RequestLimit::kPush,
       .files = RequestFiles::kTreeAndMoments,
       .run = HandlePush},
      {.name = "compact",
       .writes = true,
       .limit = RequestLimit::kPush,
       .files = RequestFiles::kMoments,
       .run = HandleCompact},
      {.name = "derive",
       .writes = true,
       .limit = RequestLimit::kPush,
       .files = RequestFiles::kMoments,
       .run = HandleDerive},
      {.name = "ls", .limit = RequestLimit::kDocument, .is_quick = true, .run = HandleLs},
      {.name = "show", .limit = RequestLimit::kDocument, .is_quick = true, .run = HandleShow},
      {.name = "report", .limit = RequestLimit::kDocument, .run = HandleReport},
      {.name = "rename", .writes = true, .limit = RequestLimit::kNone, .run = HandleRename},
      {.name = "rm", .writes = true, .limit = RequestLimit::kNone, .run = HandleRm},
      {.name = "prune", .writes = true, .limit = RequestLimit::kNone, .run = HandlePrune},
      {.name = "verify", .limit = RequestLimit::kWholeModels, .run = HandleVerify},
      {.name = "export", .limit = RequestLimit::kWholeModels, .run = HandleExport},
      {.name = "status", .limit = RequestLimit::kNone, .is_quick = true, .run = HandleStatus},
  }};
  return kHandlers;
}

const Handler* FindHandler(std::string_view name) {
  for (const Handler& handler : Handlers())
    if (handler.name == name) return &handler;
  return nullptr;
}

}  // namespace modelstore
