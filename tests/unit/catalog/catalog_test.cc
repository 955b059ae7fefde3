#include "catalog/read/catalog.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "catalog/store/kv_store.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class CatalogTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string dir = (fs::temp_directory_path() / "catalog_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(dir_, ignored);
  }

  // Publishes as push does.
  static void Publish(Catalog& catalog, const ModelRecord& model) {
    CatalogMeta meta = *catalog.Meta();
    ++meta.model_count;
    meta.model_digest ^= ModelDigest(model);
    WriteBatch batch;
    batch.Put(Family::kModels, model.name, Serialize(model));
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
    ASSERT_TRUE(catalog.store().Write(batch, Durability::kSync).ok());
  }

  fs::path dir_;
};

ModelRecord Model(ModelId id, const std::string& name) {
  ModelRecord model;
  model.id = id;
  model.name = name;
  return model;
}

TEST_F(CatalogTest, ANewStoreOpensAgainWithItsModels) {
  const std::string dir = (dir_ / "store").string();
  CatalogOptions options;
  EXPECT_EQ(Catalog::Open(dir, options).status().code(), StatusCode::kNotFound);
  options.create_if_missing = true;
  {
    auto catalog = Catalog::Open(dir, options);
    ASSERT_TRUE(catalog.ok()) << catalog.status().ToString();
    EXPECT_EQ((*catalog)->dir(), dir);
    EXPECT_EQ((*catalog)->Meta()->next_model, 1u);
    EXPECT_TRUE((*catalog)->ListModels()->empty());
    Publish(**catalog, Model(2, "b/x"));
    Publish(**catalog, Model(1, "a"));
  }
  options.create_if_missing = false;
  auto catalog = Catalog::Open(dir, options);
  ASSERT_TRUE(catalog.ok()) << catalog.status().ToString();
  const auto models = (*catalog)->ListModels();
  ASSERT_EQ(models->size(), 2u);
  EXPECT_EQ((*models)[0].name, "a");
  EXPECT_EQ((*models)[1].name, "b/x");
  EXPECT_EQ((*catalog)->FindModel("b/x")->id, 2u);
  const Status absent = (*catalog)->FindModel("b").status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
  EXPECT_NE(absent.message().find("no model named b"), std::string::npos);
}

TEST_F(CatalogTest, AVanishedModelIsNoticed) {
  CatalogOptions options;
  std::unique_ptr<KvStore> store = NewMemoryStore();
  WriteBatch batch;
  CatalogMeta meta;
  meta.model_count = 1;
  meta.model_digest = 5;
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  ASSERT_TRUE(store->Write(batch, Durability::kSync).ok());
  const Status status = Catalog::OverStore(std::move(store), "mem", options).status();
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_NE(status.message().find("store mem"), std::string::npos);
}

TEST_F(CatalogTest, AnUnknownFeatureIsRefusedByName) {
  std::unique_ptr<KvStore> store = NewMemoryStore();
  WriteBatch batch;
  CatalogMeta meta;
  meta.features = {"holograms"};
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  ASSERT_TRUE(store->Write(batch, Durability::kSync).ok());
  const Status status = Catalog::OverStore(std::move(store), "mem", {}).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("holograms"), std::string::npos);
}

TEST_F(CatalogTest, ReadOnlyWritesNothing) {
  int writes = 0;
  CatalogOptions options;
  options.read_only = true;
  auto catalog = Catalog::OverStore(NewMemoryStore([&](uint64_t) { return ++writes, OkStatus(); }), "mem", options);
  ASSERT_TRUE(catalog.ok());
  EXPECT_EQ(writes, 0);
  EXPECT_TRUE((*catalog)->Meta().ok());
}

TEST_F(CatalogTest, AFailedFirstWriteIsReported) {
  const auto status =
      Catalog::OverStore(NewMemoryStore([](uint64_t) { return NoSpace("disk full"); }), "mem", {}).status();
  EXPECT_EQ(status.code(), StatusCode::kNoSpace);
}

TEST_F(CatalogTest, SplitsTheMemoryBudget) {
  CatalogOptions options;
  for (const uint64_t budget : {32ull << 20, 100ull << 20, 1ull << 30, 64ull << 30}) {
    options.memory_budget_bytes = budget;
    auto catalog = Catalog::OverStore(NewMemoryStore(), "mem", options);
    ASSERT_TRUE(catalog.ok());
    const uint64_t cache = (*catalog)->reader().stats().cache_capacity_bytes;
    const uint64_t store = std::min<uint64_t>(budget / 4, 256ull << 20);
    EXPECT_LE(store + (*catalog)->write_budget_bytes() + cache, budget);
    EXPECT_GE(cache, budget * 2 / 5);
  }
  options.memory_budget_bytes = (32ull << 20) - 1;
  EXPECT_EQ(Catalog::OverStore(NewMemoryStore(), "mem", options).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(CatalogTest, TellsWhoListensOutsideItsLocks) {
  auto catalog = Catalog::OverStore(NewMemoryStore(), "mem", {});
  ASSERT_TRUE(catalog.ok());
  (*catalog)->NotifyChanged({"nobody hears"});
  std::vector<std::string> heard;
  (*catalog)->SetOnChanged([&](const std::vector<std::string>& names) {
    heard = names;
    (*catalog)->SetOnChanged(nullptr);
  });
  (*catalog)->NotifyChanged({"a", "b"});
  EXPECT_EQ(heard, (std::vector<std::string>{"a", "b"}));
  (*catalog)->NotifyChanged({"c"});
  EXPECT_EQ(heard.size(), 2u);
}

}  // namespace
}  // namespace modelstore
