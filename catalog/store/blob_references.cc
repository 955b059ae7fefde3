#include "catalog/store/blob_references.h"

#include <rocksdb/metadata.h>

#include <algorithm>
#include <set>

#include "codec/support/bytes.h"

namespace modelstore {
namespace {

constexpr char kProperty[] = "modelstore.blob_files";

class Collector final : public rocksdb::TablePropertiesCollector {
 public:
  const char* Name() const override { return "modelstore.BlobReferences"; }

  rocksdb::Status AddUserKey(const rocksdb::Slice&, const rocksdb::Slice& value, rocksdb::EntryType type,
                             rocksdb::SequenceNumber, uint64_t) override {
    if (type != rocksdb::kEntryBlobIndex) return rocksdb::Status::OK();
    // RocksDB's blob index: its kind (1: in a blob file), then the file's number as a varint.
    constexpr uint8_t kInBlobFile = 1;
    ByteReader in(AsBytes({value.data(), value.size()}));
    const uint8_t kind = in.U8();
    const uint64_t file = in.Varint();
    if (!in.ok() || kind != kInBlobFile) return rocksdb::Status::NotSupported("unknown kind of blob index");
    files_.insert(file);
    return rocksdb::Status::OK();
  }

  rocksdb::Status Finish(rocksdb::UserCollectedProperties* properties) override {
    ByteWriter out;
    for (const uint64_t file : files_) out.Varint(file);
    (*properties)[kProperty] = std::string(AsChars(out.view()));
    return rocksdb::Status::OK();
  }

  rocksdb::UserCollectedProperties GetReadableProperties() const override {
    return {{kProperty, std::to_string(files_.size())}};
  }

 private:
  std::set<uint64_t> files_;
};

class CollectorFactory final : public rocksdb::TablePropertiesCollectorFactory {
 public:
  const char* Name() const override { return "modelstore.BlobReferencesFactory"; }
  rocksdb::TablePropertiesCollector* CreateTablePropertiesCollector(Context) override { return new Collector(); }
};

bool RefersTo(const rocksdb::TableProperties& properties, const std::set<uint64_t>& files) {
  const auto found = properties.user_collected_properties.find(kProperty);
  if (found == properties.user_collected_properties.end()) return true;
  ByteReader in(AsBytes(found->second));
  while (in.remaining() > 0) {
    const uint64_t file = in.Varint();
    if (!in.ok() || files.contains(file)) return true;
  }
  return false;
}

}  // namespace

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> NewBlobReferencesCollector() {
  return std::make_shared<CollectorFactory>();
}

rocksdb::Status RangesWithGarbage(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, uint64_t min_garbage_share,
                                  std::vector<KeyRange>* ranges) {
  rocksdb::ColumnFamilyMetaData metadata;
  db.GetColumnFamilyMetaData(family, &metadata);
  std::set<uint64_t> dirty;
  for (const rocksdb::BlobMetaData& file : metadata.blob_files)
    if (file.garbage_blob_bytes > file.total_blob_bytes / min_garbage_share) dirty.insert(file.blob_file_number);
  if (dirty.empty()) return rocksdb::Status::OK();

  rocksdb::TablePropertiesCollection tables;  // by path
  if (const rocksdb::Status s = db.GetPropertiesOfAllTables(family, &tables); !s.ok()) return s;
  for (const rocksdb::LevelMetaData& level : metadata.levels) {
    for (const rocksdb::SstFileMetaData& sst : level.files) {
      const auto table = tables.find(sst.db_path + sst.name);
      if (table == tables.end() || RefersTo(*table->second, dirty))
        ranges->push_back({sst.smallestkey, sst.largestkey});
    }
  }
  std::sort(ranges->begin(), ranges->end(), [](const KeyRange& a, const KeyRange& b) { return a.first < b.first; });
  return rocksdb::Status::OK();
}

}  // namespace modelstore
