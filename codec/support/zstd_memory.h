// ThrowIfOutOfMemory: a failure of zstd that is none of the bytes (layer: codec/support). Pure, thread-safe.
#pragma once

#include <cstddef>

namespace modelstore {

// Throws std::bad_alloc when `code`, which zstd returned, says that its memory ran out: that says nothing of the bytes.
void ThrowIfOutOfMemory(size_t code);

}  // namespace modelstore
