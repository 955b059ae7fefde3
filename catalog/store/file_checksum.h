// Checksums of RocksDB's whole files, kept in its MANIFEST (layer: catalog/store; private to it).
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/file_checksum.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

// XXH3-128, because the crc32c of Debian's RocksDB runs at 1.2 GB/s and this at 19.
std::shared_ptr<rocksdb::FileChecksumGenFactory> NewFileChecksumFactory();

struct ChecksummedFile {
  std::string path, checksum;
  bool operator==(const ChecksummedFile&) const = default;
};
// The SSTs and blob files of these families, as they are now.
std::vector<ChecksummedFile> ListChecksummedFiles(rocksdb::DB& db,
                                                  const std::vector<rocksdb::ColumnFamilyHandle*>& families);
// Reads the file. Errors: NotFound (it is not there), Corruption naming it, Io, Cancelled.
Status VerifyFileChecksum(const ChecksummedFile& file, const std::function<bool()>& cancelled);

}  // namespace modelstore
