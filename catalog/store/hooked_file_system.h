// A RocksDB file system whose writes ask a hook first: the failing-write layer of the tests (layer: catalog/store;
// private to it). Thread-safe when the hook is.
#pragma once

#include <rocksdb/file_system.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "codec/support/status.h"

namespace modelstore {

// `before_write` is called before each append, truncate, sync, rename and close of a file that RocksDB writes, with the
// bytes about to be written (0 unless an append). Its failure is returned to RocksDB in place of the operation.
std::shared_ptr<rocksdb::FileSystem> NewHookedFileSystem(std::shared_ptr<rocksdb::FileSystem> base,
                                                         std::function<Status(uint64_t bytes)> before_write);

}  // namespace modelstore
