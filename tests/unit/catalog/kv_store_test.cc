// The in-memory KvStore and WriteBatch. What every KvStore must do is in tests/integration/store.
#include "catalog/store/kv_store.h"

#include <gtest/gtest.h>

#include <thread>

namespace modelstore {
namespace {

std::vector<std::string> KeysOf(const KvStore& store, Family family, std::string_view prefix) {
  std::vector<std::string> keys;
  EXPECT_TRUE(store
                  .Scan(family, prefix,
                        [&](std::string_view key, ByteSpan) {
                          keys.emplace_back(key);
                          return OkStatus();
                        })
                  .ok());
  return keys;
}

TEST(WriteBatch, CountsKeysAndValuesOfPuts) {
  WriteBatch batch;
  EXPECT_TRUE(batch.empty());
  batch.Put(Family::kModels, "abc", AsBytes("12345"));
  batch.Delete(Family::kModels, "abcdef");
  batch.DeleteRange(Family::kFiles, "a", "b");
  EXPECT_EQ(batch.put_bytes(), 8u);
  EXPECT_EQ(batch.ops().size(), 3u);
  batch.Put(Family::kBlocks, "k", AsBytes("v"));
  EXPECT_EQ(batch.put_bytes(), 10u);
}

TEST(MemoryStore, FailingHookLeavesEverythingAsItWas) {
  bool fail = false;
  uint64_t asked = 0;
  const auto store = NewMemoryStore([&](uint64_t bytes) {
    asked += bytes;
    return fail ? NoSpace("no room in the test") : OkStatus();
  });
  WriteBatch first;
  first.Put(Family::kModels, "a", AsBytes("1"));
  ASSERT_TRUE(store->Write(first, Durability::kSync).ok());
  EXPECT_EQ(asked, 2u);
  fail = true;
  WriteBatch second;
  second.Delete(Family::kModels, "a");
  second.Put(Family::kModels, "b", AsBytes("2"));
  EXPECT_EQ(store->Write(second, Durability::kSync).code(), StatusCode::kNoSpace);
  const Family families[] = {Family::kModels};
  EXPECT_EQ(store->Flush(families).code(), StatusCode::kNoSpace);
  EXPECT_EQ(KeysOf(*store, Family::kModels, ""), std::vector<std::string>{"a"});
}

TEST(MemoryStore, ValuesOutliveTheirKey) {
  const auto store = NewMemoryStore();
  WriteBatch batch;
  batch.Put(Family::kBlocks, "k", AsBytes("value"));
  ASSERT_TRUE(store->Write(batch, Durability::kNone).ok());
  const auto value = store->Get(Family::kBlocks, "k");
  ASSERT_TRUE(value.ok());
  WriteBatch gone;
  gone.Delete(Family::kBlocks, "k");
  ASSERT_TRUE(store->Write(gone, Durability::kNone).ok());
  EXPECT_EQ(store->Get(Family::kBlocks, "k").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(AsChars(value->bytes()), "value");
}

TEST(MemoryStore, WritersAndReadersMayRunTogether) {
  const auto store = NewMemoryStore();
  std::thread writer([&] {
    for (int i = 0; i < 2000; ++i) {
      WriteBatch batch;
      batch.Put(Family::kFiles, std::to_string(i), AsBytes("x"));
      ASSERT_TRUE(store->Write(batch, Durability::kNone).ok());
    }
  });
  size_t seen = 0;
  while (seen < 2000) {
    const size_t now = KeysOf(*store, Family::kFiles, "").size();
    ASSERT_GE(now, seen);
    seen = now;
  }
  writer.join();
}

}  // namespace
}  // namespace modelstore
