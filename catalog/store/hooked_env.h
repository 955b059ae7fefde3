// A RocksDB environment whose writes ask a hook first: the failing-write layer of the tests (layer: catalog/store;
// private to it). Thread-safe when the hook is.
#pragma once

#include <rocksdb/env.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "codec/support/status.h"

namespace modelstore {

// `before_write` is called before each append, truncate, sync, rename and close of a file that RocksDB writes, with the
// bytes about to be written (0 unless an append). Its failure is returned to RocksDB in place of the operation.
// RocksDB's pauses after failures (a second each) are cut to a millisecond.
std::unique_ptr<rocksdb::Env> NewHookedEnv(std::function<Status(uint64_t bytes)> before_write);

}  // namespace modelstore
