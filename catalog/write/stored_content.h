// Files of the store as sources of a push (layer: catalog/write; private). Values; thread-safe.
#pragma once

#include "catalog/read/catalog.h"
#include "catalog/write/push.h"
#include "codec/support/status.h"

namespace modelstore {

// Makes `source` the stored file of that SHA-256, which stays while the source lives. `catalog` outlives both. Errors:
// NotFound, Corruption, Io.
Status UseStoredFile(Catalog& catalog, const Sha256Digest& sha256, SourceFile* source);

// The SHA-256 that the mount says of its file open as `fd`. Errors: Io.
Result<Sha256Digest> MountedSha256(int fd);

}  // namespace modelstore
