#include "catalog/store/blob_references.h"

#include <rocksdb/metadata.h>

#include <algorithm>
#include <set>

#include "codec/support/bytes.h"

namespace modelstore {
namespace {

constexpr char kProperty[] = "modelstore.blob_files";
constexpr char kSizesProperty[] = "modelstore.sizes";

class Collector final : public rocksdb::TablePropertiesCollector {
 public:
  const char* Name() const override { return "modelstore.BlobReferences"; }

  rocksdb::Status AddUserKey(const rocksdb::Slice& key, const rocksdb::Slice& value, rocksdb::EntryType type,
                             rocksdb::SequenceNumber, uint64_t) override {
    uint64_t bytes = value.size();
    if (type == rocksdb::kEntryBlobIndex) {
      // RocksDB's blob index: its kind (1: in a blob file), then as varints the file's number, the offset in it and the
      // value's size.
      constexpr uint8_t kInBlobFile = 1;
      ByteReader in(AsBytes({value.data(), value.size()}));
      const uint8_t kind = in.U8();
      const uint64_t file = in.Varint();
      (void)in.Varint();
      bytes = in.Varint();
      if (!in.ok() || kind != kInBlobFile) return rocksdb::Status::NotSupported("unknown kind of blob index");
      files_.insert(file);
    } else if (type != rocksdb::kEntryPut) {
      return rocksdb::Status::OK();
    }
    BlockSize& size = sizes_[key.ToString().substr(0, kBlockPrefixBytes)];
    size.values += 1;
    size.bytes += key.size() + bytes;
    return rocksdb::Status::OK();
  }

  rocksdb::Status Finish(rocksdb::UserCollectedProperties* properties) override {
    ByteWriter out;
    for (const uint64_t file : files_) out.Varint(file);
    (*properties)[kProperty] = std::string(AsChars(out.view()));
    ByteWriter sizes;
    for (const auto& [prefix, size] : sizes_) {
      sizes.String(prefix);
      sizes.Varint(size.values);
      sizes.Varint(size.bytes);
    }
    (*properties)[kSizesProperty] = std::string(AsChars(sizes.view()));
    return rocksdb::Status::OK();
  }

  rocksdb::UserCollectedProperties GetReadableProperties() const override {
    return {{kProperty, std::to_string(files_.size())}, {kSizesProperty, std::to_string(sizes_.size())}};
  }

 private:
  std::set<uint64_t> files_;
  BlockSizes sizes_;
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

rocksdb::Status SizesByPrefix(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family, BlockSizes* sizes) {
  rocksdb::TablePropertiesCollection tables;  // by path
  if (const rocksdb::Status s = db.GetPropertiesOfAllTables(family, &tables); !s.ok()) return s;
  for (const auto& [path, properties] : tables) {
    const auto found = properties->user_collected_properties.find(kSizesProperty);
    if (found == properties->user_collected_properties.end()) continue;
    ByteReader in(AsBytes(found->second));
    while (in.remaining() > 0) {
      const std::string prefix(in.String());
      const uint64_t values = in.Varint(), bytes = in.Varint();
      if (!in.ok()) return rocksdb::Status::Corruption("malformed property " + std::string(kSizesProperty), path);
      BlockSize& size = (*sizes)[prefix];
      size.values += values;
      size.bytes += bytes;
    }
  }
  return rocksdb::Status::OK();
}

}  // namespace modelstore
