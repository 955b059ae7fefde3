#include "catalog/store/file_checksum.h"

#include <fcntl.h>
#include <rocksdb/metadata.h>
#include <unistd.h>

#include <cerrno>

#include "codec/support/hash.h"

namespace modelstore {
namespace {

constexpr char kName[] = "modelstore.XXH3-128";  // on disk: never rename

class Generator final : public rocksdb::FileChecksumGenerator {
 public:
  void Update(const char* data, size_t n) override { hasher_.Update(AsBytes({data, n})); }
  void Finalize() override {
    const Hash128 hash = hasher_.Finish();
    ByteWriter out;
    out.U64(hash.low);
    out.U64(hash.high);
    checksum_ = AsChars(out.view());
  }
  std::string GetChecksum() const override { return checksum_; }
  const char* Name() const override { return kName; }

 private:
  Hasher128 hasher_;
  std::string checksum_;
};

class Factory final : public rocksdb::FileChecksumGenFactory {
 public:
  std::unique_ptr<rocksdb::FileChecksumGenerator> CreateFileChecksumGenerator(
      const rocksdb::FileChecksumGenContext& context) override {
    // A file of unknown checksum function asks for it by name; only ours is known.
    if (!context.requested_checksum_func_name.empty() && context.requested_checksum_func_name != kName) return nullptr;
    return std::make_unique<Generator>();
  }
  const char* Name() const override { return "modelstore.FileChecksumFactory"; }
};

}  // namespace

std::shared_ptr<rocksdb::FileChecksumGenFactory> NewFileChecksumFactory() { return std::make_shared<Factory>(); }

std::vector<ChecksummedFile> ListChecksummedFiles(rocksdb::DB& db,
                                                  const std::vector<rocksdb::ColumnFamilyHandle*>& families) {
  std::vector<ChecksummedFile> files;
  std::vector<rocksdb::LiveFileMetaData> tables;
  db.GetLiveFilesMetaData(&tables);
  for (const rocksdb::LiveFileMetaData& table : tables) {
    if (table.file_checksum_func_name == kName) files.push_back({table.db_path + table.name, table.file_checksum});
  }
  for (rocksdb::ColumnFamilyHandle* family : families) {
    rocksdb::ColumnFamilyMetaData metadata;
    db.GetColumnFamilyMetaData(family, &metadata);
    for (const rocksdb::BlobMetaData& blob : metadata.blob_files) {
      // RocksDB's struct takes the two in one order and is filled in the other, which a release may put right.
      const bool is_swapped = blob.checksum_value == kName;
      if (is_swapped || blob.checksum_method == kName)
        files.push_back(
            {blob.blob_file_path + "/" + blob.blob_file_name, is_swapped ? blob.checksum_method : blob.checksum_value});
    }
  }
  return files;
}

// RocksDB's own VerifyFileChecksums cannot be stopped before it has read the whole store.
Status VerifyFileChecksum(const ChecksummedFile& file, const std::function<bool()>& cancelled) {
  constexpr size_t kWindowBytes = 1 << 20;
  const int fd = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return StatusFromErrno(errno, "opening " + file.path);
  Generator generator;
  Bytes window(kWindowBytes);
  Status status;
  while (status.ok()) {
    if (cancelled && cancelled()) status = Cancelled("verifying the store's files was cancelled");
    const ssize_t n = status.ok() ? ::read(fd, window.data(), window.size()) : 0;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) status = StatusFromErrno(errno, "reading " + file.path);
    if (n <= 0) break;
    generator.Update(AsChars(window).data(), static_cast<size_t>(n));
  }
  ::close(fd);
  RETURN_IF_ERROR(status);
  generator.Finalize();
  if (generator.GetChecksum() == file.checksum) return OkStatus();
  return Corruption(file.path + ": its bytes have another checksum than the store noted when it wrote them");
}

}  // namespace modelstore
