// Checksums of RocksDB's whole files, kept in its MANIFEST (layer: catalog/store; private to it).
#pragma once

#include <rocksdb/file_checksum.h>

#include <memory>

namespace modelstore {

// XXH3-128, because the crc32c of Debian's RocksDB runs at 1.2 GB/s and this at 19.
std::shared_ptr<rocksdb::FileChecksumGenFactory> NewFileChecksumFactory();

}  // namespace modelstore
