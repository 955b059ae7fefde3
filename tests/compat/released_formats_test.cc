// Stores as released versions wrote them (tests/data/compat) are still read, verified and added to.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "catalog/read/catalog.h"
#include "catalog/write/folder_sink.h"
#include "catalog/write/maintain.h"
#include "catalog/write/push.h"
#include "codec/support/hash.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

// A copy of a released store in a folder of its own, removed afterwards.
class ReleasedFormat : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "modelstore-compat-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::unique_ptr<Catalog> OpenCatalog() {
    CatalogOptions options;
    options.memory_budget_bytes = 256ull << 20;
    Result<std::unique_ptr<Catalog>> catalog = Catalog::Open((folder_ / "store").string(), options);
    EXPECT_TRUE(catalog.ok()) << catalog.status().ToString();
    return catalog.ok() ? std::move(catalog).value() : nullptr;
  }

  // Each model's files by the SHA-256 of their content.
  using Models = std::map<std::string, std::map<std::string, std::string>>;
  void CheckStore(const std::string& released, const Models& expected);

  fs::path folder_;
};

std::string HashOfFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  Sha256 sha;
  sha.Update(AsBytes(bytes));
  return ToHex(sha.Finish());
}

void ReleasedFormat::CheckStore(const std::string& released, const Models& expected) {
  fs::copy(fs::path(MODELSTORE_SOURCE_DIR) / "tests/data/compat" / released, folder_ / "store",
           fs::copy_options::recursive);
  fs::permissions(folder_ / "store", fs::perms::owner_all);
  const std::unique_ptr<Catalog> catalog = OpenCatalog();
  ASSERT_NE(catalog, nullptr);
  JobControl job;
  const Result<VerifyReport> verified = Verify(*catalog, {}, job);
  ASSERT_TRUE(verified.ok()) << verified.status().ToString();
  EXPECT_TRUE(verified->failed.empty());

  const Result<std::vector<ModelRecord>> models = catalog->ListModels();
  ASSERT_TRUE(models.ok());
  ASSERT_EQ(models->size(), expected.size());
  for (const auto& [name, files] : expected) {
    const fs::path out = folder_ / name;
    const Result<ExportReport> exported = Export(*catalog, name, nullptr, *NewFolderSink(out.string()), job);
    ASSERT_TRUE(exported.ok()) << exported.status().ToString();
    EXPECT_EQ(exported->files, files.size());
    for (const auto& [path, sha256] : files) EXPECT_EQ(HashOfFile(out / path), sha256) << name << '/' << path;
  }

  // What this build pushes finds what the released one stored.
  Result<SourceTree> source = SourceTree::Scan((folder_ / "base").string());
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  PushOptions options;
  options.name = "again";
  const Result<PushReport> pushed = Push(*catalog, *source, options, job);
  ASSERT_TRUE(pushed.ok()) << pushed.status().ToString();
  EXPECT_EQ(pushed->identical_file_bytes, pushed->logical_bytes);
}

// Raw, zstd, self, delta, a finetune widened to F32, an empty tensor and an empty file.
TEST_F(ReleasedFormat, One) {
  CheckStore(
      "format-1",
      {
          {"base",
           {{"config.json", "b3e5d6c91987ae0b8dc03b4660ac7f4fedcd297267ebf2e764bfb9d232b8b0a5"},
            {"empty.txt", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
            {"model.safetensors", "559870e188acdaf39b4c4ee99baef6897d122b81e7777a9d5bfcdfb9cc803e5f"}}},
          {"finetune",
           {{"config.json", "b3e5d6c91987ae0b8dc03b4660ac7f4fedcd297267ebf2e764bfb9d232b8b0a5"},
            {"model.safetensors", "cc234b4a1bfbc358aa15b4673a339240140189b25191108acede539d9b2ae4d2"}}},
          {"widened", {{"model.safetensors", "6c5e0d904d6814470b2c1539382e7f46eb537b501a15ba7dc031d38589c4184b"}}},
      });
}

// A finetune made compact twice, BF16, F16 and F32: from factors and a residual, and pruned and quantized in groups
// with levels of more than 3 bits; its norms are one delta.
TEST_F(ReleasedFormat, OneWithCompactModels) {
  CheckStore("format-1-compact",
             {
                 {"base",
                  {{"config.json", "3216f32d8cd1cb6f7f5ed3330a9b72a5952cf1e3bf0ac9d3a4f4a80fa8f92eda"},
                   {"model.safetensors", "a07e96330d7ea9c6adf522f7dc286565143b11a512c84a145fee6744dfd21009"}}},
                 {"small",
                  {{"config.json", "3216f32d8cd1cb6f7f5ed3330a9b72a5952cf1e3bf0ac9d3a4f4a80fa8f92eda"},
                   {"model.safetensors", "2bb29acb2aac06222cc7efeb409a232d5c49a646484b76d27c09659f12bf31a0"}}},
                 {"pruned",
                  {{"config.json", "3216f32d8cd1cb6f7f5ed3330a9b72a5952cf1e3bf0ac9d3a4f4a80fa8f92eda"},
                   {"model.safetensors", "882180213819e9be4dd910f292606e39706af35e9a08b0717441858a91364613"}}},
             });
}

}  // namespace
}  // namespace modelstore
