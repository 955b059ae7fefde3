// What every KvStore must do, in memory and on RocksDB alike.
#include <gtest/gtest.h>

#include "catalog/schema/records.h"
#include "tests/integration/store/store_fixture.h"

namespace modelstore {
namespace {

class StoreContract : public StoreTest, public ::testing::WithParamInterface<bool> {
 protected:
  StoreContract() : store_(GetParam() ? Open() : NewMemoryStore()) {}

  void Put(Family family, std::string_view key, std::string_view value) {
    WriteBatch batch;
    batch.Put(family, key, AsBytes(value));
    ASSERT_OK(store_->Write(batch, Durability::kSync));
  }
  std::string Value(Family family, std::string_view key) {
    const auto value = store_->Get(family, key);
    return value.ok() ? std::string(AsChars(value->bytes())) : "(" + std::string(value.status().ToString()) + ")";
  }

  std::unique_ptr<KvStore> store_;
};

INSTANTIATE_TEST_SUITE_P(All, StoreContract, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Rocks" : "Memory"; });

TEST_P(StoreContract, ValuesOfEverySizeComeBack) {
  for (int f = 0; f < kFamilyCount; ++f) {
    const auto family = static_cast<Family>(f);
    for (const size_t size : {0, 1, 1000, 1023, 1024, 1025, 200000}) {
      const std::string key = "k" + std::to_string(size);
      WriteBatch batch;
      batch.Put(family, key, NoiseBytes(size, size));
      ASSERT_OK(store_->Write(batch, size % 2 == 0 ? Durability::kNone : Durability::kSync));
      EXPECT_EQ(Value(family, key), AsChars(NoiseBytes(size, size))) << FamilyName(family);
    }
    ASSERT_OK(FlushFamilies(*store_, {family}));
    for (const size_t size : {0, 1, 1000, 1023, 1024, 1025, 200000})
      EXPECT_EQ(Value(family, "k" + std::to_string(size)), AsChars(NoiseBytes(size, size)));
  }
}

TEST_P(StoreContract, FamiliesAreApartAndMissingKeysAreNotFound) {
  Put(Family::kModels, "k", "model");
  Put(Family::kFiles, "k", "file");
  EXPECT_EQ(Value(Family::kModels, "k"), "model");
  EXPECT_EQ(Value(Family::kFiles, "k"), "file");
  const auto missing = store_->Get(Family::kTensors, "k");
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_NE(missing.status().message().find("tensors"), std::string_view::npos);
  Put(Family::kModels, "k", "newer");
  EXPECT_EQ(Value(Family::kModels, "k"), "newer");
}

TEST_P(StoreContract, MultiGetKeepsTheOrderOfItsKeys) {
  for (const Family family : {Family::kTensors, Family::kBlocks}) {
    for (int i = 0; i < 50; ++i)
      Put(family, "k" + std::to_string(i), std::string(3000, static_cast<char>('a' + i % 26)));
    ASSERT_OK(FlushFamilies(*store_, {family}));
    const std::vector<std::string> keys = {"k7", "absent", "k0", "k7", "k49", "", "k10"};
    const auto values = store_->MultiGet(family, keys);
    ASSERT_EQ(values.size(), keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto single = store_->Get(family, keys[i]);
      ASSERT_EQ(values[i].ok(), single.ok()) << keys[i];
      if (single.ok()) {
        EXPECT_EQ(AsChars(values[i]->bytes()), AsChars(single->bytes())) << keys[i];
      } else {
        EXPECT_EQ(values[i].status().code(), StatusCode::kNotFound);
      }
    }
    EXPECT_TRUE(store_->MultiGet(family, {}).empty());
  }
}

TEST_P(StoreContract, BatchesApplyInOrderAndTogether) {
  Put(Family::kFiles, "old", "1");
  WriteBatch batch;
  batch.Put(Family::kModels, "a", AsBytes("1"));
  batch.Delete(Family::kModels, "a");
  batch.Put(Family::kModels, "b", AsBytes("1"));
  batch.Put(Family::kModels, "b", AsBytes("2"));
  batch.Delete(Family::kFiles, "old");
  batch.Delete(Family::kFiles, "never was");
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  EXPECT_EQ(KeysOf(*store_, Family::kModels), std::vector<std::string>{"b"});
  EXPECT_EQ(Value(Family::kModels, "b"), "2");
  EXPECT_TRUE(KeysOf(*store_, Family::kFiles).empty());
  EXPECT_OK(store_->Write(WriteBatch(), Durability::kSync));
}

TEST_P(StoreContract, ScansSeeAPrefixInOrder) {
  const std::string high("\xff\xff", 2);
  for (const std::string& key :
       {std::string("b"), std::string("a\xff"), std::string("a"), std::string("ab"), high + "x", high,
        std::string("\xff\xfe", 2), std::string("a\0", 2), std::string("b\xff\xff")})
    Put(Family::kEdges, key, "");
  using Keys = std::vector<std::string>;
  EXPECT_EQ(KeysOf(*store_, Family::kEdges, "a"), (Keys{"a", std::string("a\0", 2), "ab", "a\xff"}));
  EXPECT_EQ(KeysOf(*store_, Family::kEdges, "b\xff"), (Keys{"b\xff\xff"}));
  EXPECT_EQ(KeysOf(*store_, Family::kEdges, high), (Keys{high, high + "x"}));
  EXPECT_EQ(KeysOf(*store_, Family::kEdges, "c"), Keys{});
  EXPECT_EQ(KeysOf(*store_, Family::kEdges).size(), 9u);
  Keys keys;
  EXPECT_OK(store_->ScanKeys(Family::kEdges, "a", [&](std::string_view key) {
    keys.emplace_back(key);
    return OkStatus();
  }));
  EXPECT_EQ(keys, KeysOf(*store_, Family::kEdges, "a"));
}

TEST_P(StoreContract, ScansStopWithTheVisitorsError) {
  for (const char* key : {"a", "b", "c"}) Put(Family::kModels, key, "");
  int seen = 0;
  const Status status = store_->Scan(Family::kModels, "", [&](std::string_view key, ByteSpan) {
    ++seen;
    return key == "b" ? Cancelled("enough") : OkStatus();
  });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(seen, 2);
}

TEST_P(StoreContract, ScansSeeOneSnapshot) {
  for (int i = 10; i < 60; ++i) Put(Family::kModels, std::to_string(i), "old");
  int seen = 0;
  EXPECT_OK(store_->Scan(Family::kModels, "", [&](std::string_view, ByteSpan value) {
    EXPECT_EQ(AsChars(value), "old");
    if (seen++ == 0) {
      WriteBatch batch;
      for (int i = 10; i < 100; ++i) batch.Put(Family::kModels, std::to_string(i), AsBytes("new"));
      batch.Delete(Family::kModels, "30");
      EXPECT_OK(store_->Write(batch, Durability::kSync));
    }
    return OkStatus();
  }));
  EXPECT_EQ(seen, 50);
  EXPECT_EQ(KeysOf(*store_, Family::kModels).size(), 89u);
}

TEST_P(StoreContract, SnapshotsStayAsTheyWere) {
  const std::vector<std::string> keys = {"a", "b", "new"};
  for (const Family family : {Family::kModels, Family::kBlocks}) {
    Put(family, "a", "old a");
    Put(family, "b", std::string(100000, 'b'));
  }
  ASSERT_OK(FlushFamilies(*store_, {Family::kBlocks}));
  auto snapshot = store_->Snapshot();
  ASSERT_OK(snapshot.status());
  WriteBatch batch;
  for (const Family family : {Family::kModels, Family::kBlocks}) {
    batch.Put(family, "a", AsBytes("new a"));
    batch.DeleteRange(family, "b", "c");
    batch.Put(family, "new", AsBytes("new"));
  }
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  ASSERT_OK(store_->CollectGarbage(nullptr));
  for (const Family family : {Family::kModels, Family::kBlocks}) {
    const KvReader& old = **snapshot;
    EXPECT_EQ(AsChars(old.Get(family, "a")->bytes()), "old a");
    EXPECT_EQ(old.Get(family, "new").status().code(), StatusCode::kNotFound);
    const auto values = old.MultiGet(family, keys);
    ASSERT_TRUE(values[0].ok() && values[1].ok());
    EXPECT_EQ(AsChars(values[1]->bytes()), std::string(100000, 'b'));
    EXPECT_FALSE(values[2].ok());
    std::vector<std::string> scanned, prefixes;
    ASSERT_OK(old.Scan(family, "", [&](std::string_view key, ByteSpan value) {
      scanned.push_back(std::string(key) + "=" + std::to_string(value.size()));
      return OkStatus();
    }));
    EXPECT_EQ(scanned, (std::vector<std::string>{"a=5", "b=100000"}));
    ASSERT_OK(old.ScanPrefixes(family, 1, [&](std::string_view prefix) {
      prefixes.emplace_back(prefix);
      return OkStatus();
    }));
    EXPECT_EQ(prefixes, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(KeysOf(*store_, family), (std::vector<std::string>{"a", "new"}));
  }
  snapshot->reset();
  ASSERT_OK(store_->CollectGarbage(nullptr));
  EXPECT_EQ(Value(Family::kBlocks, "a"), "new a");
}

TEST_P(StoreContract, RangesAreDeletedWithoutTheirEnd) {
  for (const PushId push : {1, 2, 3})
    for (uint32_t i = 0; i < 5; ++i) Put(Family::kBlocks, BlockKey(push, i), std::string(2000, 'x'));
  WriteBatch batch;
  batch.DeleteRange(Family::kBlocks, BlockKeyPrefix(2), BlockKeyPrefix(3));
  batch.DeleteRange(Family::kBlocks, BlockKey(1, 1), BlockKey(1, 3));
  batch.DeleteRange(Family::kBlocks, BlockKey(3, 4), BlockKey(3, 2));  // nothing
  batch.Put(Family::kBlocks, BlockKey(2, 9), AsBytes("after the range"));
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  std::vector<std::string> expected = {BlockKey(1, 0), BlockKey(1, 3), BlockKey(1, 4), BlockKey(2, 9)};
  for (uint32_t i = 0; i < 5; ++i) expected.push_back(BlockKey(3, i));
  EXPECT_EQ(KeysOf(*store_, Family::kBlocks), expected);
  EXPECT_OK(store_->CollectGarbage(nullptr));
  EXPECT_EQ(KeysOf(*store_, Family::kBlocks), expected);
}

TEST_P(StoreContract, PrefixesNameEachPushOnce) {
  for (const PushId push : {PushId{1}, PushId{2}, PushId{0xffffffffffffffff}})
    for (uint32_t i = 0; i < 3; ++i) Put(Family::kBlocks, BlockKey(push, i), std::string(2000, 'x'));
  Put(Family::kBlocks, "ab", "shorter than the prefix");
  std::vector<std::string> prefixes;
  ASSERT_OK(store_->ScanPrefixes(Family::kBlocks, 8, [&](std::string_view prefix) {
    prefixes.emplace_back(prefix);
    return OkStatus();
  }));
  EXPECT_EQ(prefixes,
            (std::vector<std::string>{BlockKeyPrefix(1), BlockKeyPrefix(2), "ab", BlockKeyPrefix(0xffffffffffffffff)}));
  EXPECT_EQ(store_->ScanPrefixes(Family::kBlocks, 8, [](std::string_view) { return Cancelled("enough"); }).code(),
            StatusCode::kCancelled);
  EXPECT_EQ(store_->ScanKeys(Family::kBlocks, "", [](std::string_view) { return OkStatus(); }).code(),
            StatusCode::kUnsupported);
}

TEST_P(StoreContract, BlocksAreCountedByPush) {
  for (const PushId push : {PushId{1}, PushId{7}})
    for (uint32_t i = 0; i < 3 + push; ++i) Put(Family::kBlocks, BlockKey(push, i), std::string(500 + 1000 * i, 'x'));
  ASSERT_OK(FlushFamilies(*store_, {Family::kBlocks}));
  Put(Family::kBlocks, BlockKey(7, 10), std::string(200000, 'y'));
  ASSERT_OK(FlushFamilies(*store_, {Family::kBlocks}));
  const auto expect = [&](PushId push, uint64_t values, uint64_t bytes) {
    const Result<BlockSizes> sizes = store_->CountBlocks();
    ASSERT_OK(sizes.status());
    const auto size = sizes->find(BlockKeyPrefix(push));
    ASSERT_NE(size, sizes->end());
    EXPECT_EQ(size->second.values, values);
    EXPECT_EQ(size->second.bytes, bytes);
  };
  expect(1, 4, 4 * 512 + 6 * 1000);
  expect(7, 11, 10 * 512 + 45 * 1000 + 200012);
  WriteBatch batch;
  batch.DeleteRange(Family::kBlocks, BlockKey(7, 0), BlockKey(7, 10));
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  ASSERT_OK(store_->CollectGarbage(nullptr));
  expect(1, 4, 4 * 512 + 6 * 1000);
  expect(7, 1, 200012);
}

// What was deleted of a range goes; what lies beside it costs nothing and stays.
TEST_P(StoreContract, BlocksOfARangeAreCollected) {
  for (const PushId push : {1, 2, 3})
    for (uint32_t i = 0; i < 8; ++i) Put(Family::kBlocks, BlockKey(push, i), std::string(400000, 'x'));
  ASSERT_OK(FlushFamilies(*store_, {Family::kBlocks}));
  const uint64_t before = *store_->DiskBytes();
  WriteBatch batch;
  batch.DeleteRange(Family::kBlocks, BlockKey(2, 1), BlockKey(2, 8));
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  EXPECT_EQ(store_->CollectBlocks(BlockKeyPrefix(2), BlockKeyPrefix(3), [] { return true; }).code(),
            StatusCode::kCancelled);
  ASSERT_OK(store_->CollectBlocks(BlockKeyPrefix(2), BlockKeyPrefix(3), nullptr));
  EXPECT_LT(*store_->DiskBytes(), before - 6 * 400000);
  std::vector<std::string> expected;
  for (const PushId push : {1, 2, 3})
    for (uint32_t i = 0; i < (push == 2 ? 1 : 8); ++i) expected.push_back(BlockKey(push, i));
  EXPECT_EQ(KeysOf(*store_, Family::kBlocks), expected);
  EXPECT_EQ(Value(Family::kBlocks, BlockKey(2, 0)), std::string(400000, 'x'));
  EXPECT_EQ(Value(Family::kBlocks, BlockKey(3, 7)), std::string(400000, 'x'));
}

TEST_P(StoreContract, ValuesOutliveTheirKeysAndCollection) {
  Put(Family::kBlocks, "k", std::string(100000, 'v'));
  Put(Family::kFiles, "k", "file");
  ASSERT_OK(FlushFamilies(*store_, {Family::kBlocks, Family::kFiles}));
  const auto block = store_->Get(Family::kBlocks, "k");
  const auto file = store_->Get(Family::kFiles, "k");
  ASSERT_TRUE(block.ok() && file.ok());
  WriteBatch batch;
  batch.Delete(Family::kBlocks, "k");
  batch.Delete(Family::kFiles, "k");
  ASSERT_OK(store_->Write(batch, Durability::kSync));
  ASSERT_OK(store_->CollectGarbage(nullptr));
  EXPECT_EQ(store_->Get(Family::kBlocks, "k").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(AsChars(block->bytes()), std::string(100000, 'v'));
  EXPECT_EQ(AsChars(file->bytes()), "file");
}

TEST_P(StoreContract, CollectionCanBeCancelled) {
  Put(Family::kBlocks, "k", std::string(100000, 'v'));
  EXPECT_EQ(store_->CollectGarbage([] { return true; }).code(), StatusCode::kCancelled);
  EXPECT_EQ(Value(Family::kBlocks, "k"), std::string(100000, 'v'));
  EXPECT_OK(store_->CollectGarbage([] { return false; }));
}

}  // namespace
}  // namespace modelstore
