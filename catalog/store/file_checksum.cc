#include "catalog/store/file_checksum.h"

#include <string>

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

}  // namespace modelstore
