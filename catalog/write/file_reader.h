// Reads a stored file from front to back with all cores, for verify and export (layer: catalog/write; private).
#pragma once

#include <functional>
#include <map>

#include "catalog/read/catalog.h"
#include "codec/support/job_control.h"

namespace modelstore {

// The tensors that the file holds from their first byte to this many, in order: as wholes, or in parts. A tensor of
// that size is held in full.
std::map<TensorId, uint64_t> TensorsInFull(const FileRecord& record);

// Decodes each block from the store's own bytes (the reader's cache is neither filled nor trusted with them).
// Calls `consume` with the file's bytes in order, window by window, while the next window is decoded; then compares
// their SHA-256, and the hash of every tensor held in full, with what the store's records say. Advances `job`. Errors:
// Corruption (decoding fails, a hash differs, a record is missing), Io, Cancelled, and what `consume` returns.
Status ReadWholeFile(Catalog& catalog, const Sha256Digest& sha256, JobControl& job,
                     const std::function<Status(ByteSpan)>& consume);

}  // namespace modelstore
