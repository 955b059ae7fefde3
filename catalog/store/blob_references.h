// Which blob files each SST of a family refers to (layer: catalog/store; private to it).
//
// RocksDB can copy live values out of half-dead blob files only by compacting key ranges, and tells of an SST no more
// than the oldest blob file it refers to. A collector writes the whole set into the SST's properties, so that garbage
// collection rewrites the ranges that need it and not the whole store.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/table_properties.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace modelstore {

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> NewBlobReferencesCollector();

struct KeyRange {
  std::string first, last;  // both included
};

// Key ranges of the SSTs that refer to blob files of which at least one part in `min_garbage_share` is garbage, in key
// order. An SST without the property (written by another program) counts as referring to every file.
rocksdb::Status RangesWithGarbage(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, uint64_t min_garbage_share,
                                  std::vector<KeyRange>* ranges);

}  // namespace modelstore
