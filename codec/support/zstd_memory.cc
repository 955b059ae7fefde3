#include "codec/support/zstd_memory.h"

#include <zstd.h>  // declares ZSTD_getErrorCode since 1.5.7, zstd_errors.h before
#include <zstd_errors.h>

#include <new>

namespace modelstore {

void ThrowIfOutOfMemory(size_t code) {
  if (ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation) throw std::bad_alloc();
}

}  // namespace modelstore
