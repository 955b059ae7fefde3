// Who is at the other end of a Unix socket (layer: daemon/service). Stateless; thread-safe.
#pragma once

#include <string>

#include "codec/support/status.h"
#include "daemon/handlers/caller.h"

namespace modelstore {

// The process that connected, as the kernel recorded it then, with all its groups. Administrators are root and the user
// that this process runs as; they and the members of `group` (which need not exist) may push. Errors: Io.
Result<Caller> CallerOf(int socket, const std::string& group);

}  // namespace modelstore
