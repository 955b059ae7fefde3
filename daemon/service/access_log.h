// The access log: one line for each file that was open on the mount (layer: daemon/service). Stateless; thread-safe.
#pragma once

#include "fuse/mount.h"

namespace modelstore {

// Writes the record to the log: who opened what, and what was read of it until the last mapping was gone.
void LogAccess(const AccessRecord& record);

}  // namespace modelstore
