// Which blob files each SST of a family refers to, and how much its values are (layer: catalog/store; private to it).
//
// RocksDB can copy live values out of half-dead blob files only by compacting key ranges, and tells of an SST no more
// than the oldest blob file it refers to. A collector writes the whole set into the SST's properties, so that garbage
// collection rewrites the ranges that need it and not the whole store; and beside it how many values there are of each
// prefix of keys and what they take, so that nobody has to read values to know.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/table_properties.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "catalog/store/kv_store.h"

namespace modelstore {

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> NewBlobReferencesCollector();

struct KeyRange {
  std::string first, last;  // both included
};

// Key ranges of the SSTs that refer to blob files of which at least one part in `min_garbage_share` is garbage, in key
// order. An SST without the property (written by another program) counts as referring to every file.
rocksdb::Status RangesWithGarbage(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, uint64_t min_garbage_share,
                                  std::vector<KeyRange>* ranges);

// Adds up what the SSTs say of their values, by the first kBlockPrefixBytes of the keys. One without the property adds
// nothing.
rocksdb::Status SizesByPrefix(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, BlockSizes* sizes);

}  // namespace modelstore
