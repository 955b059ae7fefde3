#include "daemon/handlers/handlers.h"

#include <array>

#include "daemon/handlers/handler_groups.h"

namespace modelstore {

std::span<const Handler> Handlers() {
  static const std::array<Handler, 12> kHandlers = {{
      {.name = "push", .creates_store = true, .writes = true, .run = HandlePush},
      {.name = "compact", .creates_store = false, .writes = true, .run = HandleCompact},
      {.name = "derive", .creates_store = false, .writes = true, .run = HandleDerive},
      {.name = "ls", .creates_store = false, .writes = false, .run = HandleLs},
      {.name = "show", .creates_store = false, .writes = false, .run = HandleShow},
      {.name = "report", .creates_store = false, .writes = false, .run = HandleReport},
      {.name = "rename", .creates_store = false, .writes = true, .run = HandleRename},
      {.name = "rm", .creates_store = false, .writes = true, .run = HandleRm},
      {.name = "prune", .creates_store = false, .writes = true, .run = HandlePrune},
      {.name = "verify", .creates_store = false, .writes = false, .run = HandleVerify},
      {.name = "export", .creates_store = false, .writes = false, .run = HandleExport},
      {.name = "status", .creates_store = false, .writes = false, .run = HandleStatus},
  }};
  return kHandlers;
}

const Handler* FindHandler(std::string_view name) {
  for (const Handler& handler : Handlers())
    if (handler.name == name) return &handler;
  return nullptr;
}

}  // namespace modelstore
