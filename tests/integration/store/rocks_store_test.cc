// The RocksDB store: its folder, its lock, what it costs on disk, and garbage collection.
#include <fcntl.h>
#include <rocksdb/db.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "catalog/schema/records.h"
#include "tests/integration/store/store_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

using RocksStoreTest = StoreTest;

StatusCode OpenCode(const std::string& dir, const StoreOptions& options) {
  return OpenRocksStore(dir, options).status().code();
}

uint64_t BallastBytes(const std::string& dir) {
  struct stat st {};
  return ::stat((dir + "/ballast").c_str(), &st) == 0 ? static_cast<uint64_t>(st.st_blocks) * 512 : 0;
}

TEST_F(RocksStoreTest, MissingStoreIsNotFoundAndSaysWhatToDo) {
  const auto opened = OpenRocksStore(dir(), StoreOptions());
  EXPECT_EQ(opened.status().code(), StatusCode::kNotFound);
  EXPECT_NE(opened.status().message().find("run push to create one"), std::string_view::npos);
  EXPECT_FALSE(fs::exists(dir()));
  fs::create_directory(dir());
  EXPECT_EQ(OpenCode(dir(), StoreOptions()), StatusCode::kNotFound);
  EXPECT_TRUE(fs::is_empty(dir()));
}

TEST_F(RocksStoreTest, FolderIsPrivateAndParentsAreMade) {
  const std::string deep = temp() + "/a/b/store";
  const auto store = OpenRocksStore(deep, options());
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  EXPECT_EQ(fs::status(deep).permissions(), fs::perms::owner_all);
}

TEST_F(RocksStoreTest, ForeignFolderIsRefusedAndLeftAlone) {
  fs::create_directory(dir());
  std::ofstream(dir() + "/thesis.tex") << "text";
  EXPECT_EQ(OpenCode(dir(), options()), StatusCode::kInvalidArgument);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir()), fs::directory_iterator()), 1);
  const std::string file = dir() + "/thesis.tex";
  EXPECT_EQ(OpenCode(file, options()), StatusCode::kInvalidArgument);
}

TEST_F(RocksStoreTest, CreationCutShortGoesOn) {
  fs::create_directories(dir() + "/db");
  std::ofstream(dir() + "/lock");
  std::ofstream(dir() + "/db/MANIFEST-000001") << "torn";
  std::ofstream(dir() + "/db/IDENTITY") << "x";
  EXPECT_EQ(OpenCode(dir(), StoreOptions()), StatusCode::kNotFound);
  const auto store = Open();
  ASSERT_NE(store, nullptr);
  EXPECT_OK(PushModel(*store, 1, 2, 5000));
}

// RocksDB would create a new database over the old one and delete its files.
TEST_F(RocksStoreTest, LostCurrentFileIsCorruptionAndNothingIsDeleted) {
  ASSERT_OK(PushModel(*Open(), 1, 2, 5000));
  const std::string current = dir() + "/db/CURRENT";
  fs::rename(current, temp() + "/CURRENT");
  EXPECT_EQ(OpenCode(dir(), options()), StatusCode::kCorruption);
  fs::rename(temp() + "/CURRENT", current);
  EXPECT_EQ(CheckedModels(*Open()), std::vector<std::string>{"m1"});
}

TEST_F(RocksStoreTest, EmptyStoreIsSmall) {
  for (int round = 0; round < 3; ++round) (void)Open();
  const auto store = Open();
  EXPECT_LT(*store->DiskBytes() - BallastBytes(dir()), 200u * 1024);
  EXPECT_GE(BallastBytes(dir()), 512u * 1024);
}

TEST_F(RocksStoreTest, FolderTakesLittleMoreThanItsBlocks) {
  constexpr uint32_t kBlocks = 600;
  constexpr size_t kBlockBytes = 100000;
  ASSERT_OK(PushModel(*Open(), 1, kBlocks, kBlockBytes));
  EXPECT_LE(static_cast<double>(*Open()->DiskBytes()), 1.02 * kBlocks * kBlockBytes);
}

TEST_F(RocksStoreTest, UnflushedAndUnsyncedIsLostButSyncedIsNot) {
  {
    const auto store = Open();
    WriteBatch unlogged, synced;
    unlogged.Put(Family::kBlocks, "lost", AsBytes("x"));
    synced.Put(Family::kModels, "kept", AsBytes("y"));
    ASSERT_OK(store->Write(unlogged, Durability::kNone));
    ASSERT_OK(store->Write(synced, Durability::kSync));
  }
  const auto store = Open();
  EXPECT_EQ(KeysOf(*store, Family::kModels), std::vector<std::string>{"kept"});
  EXPECT_TRUE(KeysOf(*store, Family::kBlocks).empty());
}

TEST_F(RocksStoreTest, ReadOnlyReadsAndRefusesWrites) {
  StoreOptions read_only;
  read_only.read_only = true;
  EXPECT_EQ(OpenCode(dir(), read_only), StatusCode::kNotFound);
  ASSERT_OK(PushModel(*Open(), 1, 3, 5000));
  const auto first = Open(read_only);
  const auto second = Open(read_only);  // readers share
  ASSERT_TRUE(first && second);
  EXPECT_EQ(CheckedModels(*first), std::vector<std::string>{"m1"});
  EXPECT_EQ(CheckedModels(*second), std::vector<std::string>{"m1"});
  WriteBatch batch;
  batch.Put(Family::kModels, "a", AsBytes("b"));
  EXPECT_EQ(first->Write(batch, Durability::kSync).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(FlushFamilies(*first, {Family::kModels}).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(first->CollectGarbage(nullptr).code(), StatusCode::kPermissionDenied);
  EXPECT_OK(first->VerifyChecksums());
  EXPECT_EQ(OpenCode(dir(), options()), StatusCode::kLocked);
}

TEST_F(RocksStoreTest, FamilyOfANewerFormatIsUnsupportedAndNamed) {
  (void)Open();
  const std::string db_dir = dir() + "/db";
  std::vector<std::string> names;
  ASSERT_TRUE(rocksdb::DB::ListColumnFamilies(rocksdb::DBOptions(), db_dir, &names).ok());
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (const std::string& name : names) families.emplace_back(name, rocksdb::ColumnFamilyOptions());
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* opened = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(rocksdb::DBOptions(), db_dir, families, &handles, &opened).ok());
  const std::unique_ptr<rocksdb::DB> db(opened);
  ASSERT_TRUE(db->CreateColumnFamily(rocksdb::ColumnFamilyOptions(), "moments", &handles.emplace_back()).ok());
  for (rocksdb::ColumnFamilyHandle* handle : handles) ASSERT_TRUE(db->DestroyColumnFamilyHandle(handle).ok());
  ASSERT_TRUE(db->Close().ok());
  const auto store = OpenRocksStore(dir(), options());
  EXPECT_EQ(store.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(store.status().message().find("\"moments\""), std::string_view::npos) << store.status().message();
}

// --- the lock ---

TEST(StoreChild, DISABLED_HoldsTheStore) {
  StoreOptions options;
  options.create_if_missing = true;
  const auto store = OpenRocksStore(ChildDir(), options);
  ASSERT_TRUE(store.ok());
  ReportProgress();
  ::pause();
}

TEST_F(RocksStoreTest, SecondProcessIsToldWhoHoldsTheStore) {
  int progress = -1;
  const pid_t child = StartChild("StoreChild.DISABLED_HoldsTheStore", dir(), &progress);
  ASSERT_GT(child, 0);
  char byte = 0;
  ASSERT_EQ(::read(progress, &byte, 1), 1);
  const auto opened = OpenRocksStore(dir(), options());
  EXPECT_EQ(opened.status().code(), StatusCode::kLocked);
  EXPECT_NE(opened.status().message().find("process " + std::to_string(child) + " (store-child"),
            std::string_view::npos)
      << opened.status().message();
  StoreOptions read_only;
  read_only.read_only = true;
  EXPECT_EQ(OpenCode(dir(), read_only), StatusCode::kLocked);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(progress);
  EXPECT_NE(Open(), nullptr);
}

TEST_F(RocksStoreTest, SameProcessCannotOpenTwice) {
  const auto store = Open();
  EXPECT_EQ(OpenCode(dir(), options()), StatusCode::kLocked);
}

// --- garbage collection ---

uint64_t BlobBytes(const std::string& dir) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(dir + "/db"))
    if (entry.path().extension() == ".blob") bytes += entry.file_size();
  return bytes;
}

Status DropBlocks(KvStore& store, std::string_view begin, std::string_view end) {
  WriteBatch batch;
  batch.DeleteRange(Family::kBlocks, begin, end);
  return store.Write(batch, Durability::kSync);
}

TEST_F(RocksStoreTest, CollectionGivesBackWholePushesAndPartsOfThem) {
  constexpr size_t kBlockBytes = 50000;
  const auto store = Open();
  for (const PushId push : {1, 2, 3}) ASSERT_OK(PushModel(*store, push, 200, kBlockBytes));
  const uint64_t full = BlobBytes(dir());
  ASSERT_GE(full, 600 * kBlockBytes);

  ASSERT_OK(DropBlocks(*store, BlockKeyPrefix(2), BlockKeyPrefix(3)));
  EXPECT_EQ(BlobBytes(dir()), full);
  ASSERT_OK(store->CollectGarbage(nullptr));
  EXPECT_LE(BlobBytes(dir()), 401 * (kBlockBytes + 100));

  ASSERT_OK(DropBlocks(*store, BlockKey(1, 20), BlockKey(1, 180)));
  ASSERT_OK(DropBlocks(*store, BlockKey(3, 0), BlockKey(3, 100)));
  ASSERT_OK(store->CollectGarbage(nullptr));
  EXPECT_LE(BlobBytes(dir()), 141 * (kBlockBytes + 100));
  for (const auto& [push, index] : {std::pair{1, 0}, {1, 19}, {1, 180}, {1, 199}, {3, 100}, {3, 199}}) {
    const auto value = store->Get(Family::kBlocks, BlockKey(push, index));
    ASSERT_TRUE(value.ok()) << push << "/" << index;
    const auto coded = OpenBlock(value->bytes());
    ASSERT_TRUE(coded.ok());
    EXPECT_EQ(AsChars(*coded), AsChars(NoiseBytes(BlockSeed(push, index), kBlockBytes)));
  }
  EXPECT_EQ(KeysOf(*store, Family::kBlocks).size(), 140u);
  EXPECT_OK(store->VerifyChecksums());

  ASSERT_OK(DropBlocks(*store, BlockKeyPrefix(0), BlockKeyPrefix(9)));
  ASSERT_OK(store->CollectGarbage(nullptr));
  EXPECT_EQ(BlobBytes(dir()), 0u);
}

// Puts, deletions, flushes, collections and reopenings in random order: what is there is what a map would hold.
TEST_F(RocksStoreTest, RandomHistoriesAgreeWithAMap) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    std::mt19937_64 random(seed);
    fs::remove_all(dir());
    std::array<std::map<std::string, std::string>, kFamilyCount> expected;
    auto store = Open();
    for (int step = 0; step < 12; ++step) {
      WriteBatch batch;
      const bool deletes = random() % 2 == 0;
      for (int f = 0; f < kFamilyCount; ++f) {
        const auto family = static_cast<Family>(f);
        for (uint64_t ops = random() % 30; ops > 0; --ops) {
          const std::string key = BlockKey(random() % 6, static_cast<uint32_t>(random() % 10));
          const std::string other = BlockKey(random() % 6, static_cast<uint32_t>(random() % 10));
          if (!deletes) {
            const std::string value(family == Family::kBlocks ? 2000 : 20, static_cast<char>('a' + random() % 26));
            batch.Put(family, key, AsBytes(value));
            expected[f][key] = value;
          } else if (random() % 2 == 0) {
            batch.Delete(family, key);
            expected[f].erase(key);
          } else if (key < other) {
            batch.DeleteRange(family, key, other);
            expected[f].erase(expected[f].lower_bound(key), expected[f].lower_bound(other));
          }
        }
      }
      ASSERT_OK(store->Write(batch, Durability::kSync));
      for (int f = 0; f < kFamilyCount; ++f) {
        if (random() % 4 == 0) {
          ASSERT_OK(FlushFamilies(*store, {static_cast<Family>(f)}));
        }
      }
      if (random() % 4 == 0) {
        ASSERT_OK(store->CollectGarbage(nullptr));
      }
      if (random() % 6 == 0) {
        store.reset();
        store = Open();
      }
      for (int f = 0; f < kFamilyCount; ++f) {
        std::map<std::string, std::string> found;
        ASSERT_OK(store->Scan(static_cast<Family>(f), "", [&](std::string_view key, ByteSpan value) {
          found.emplace(key, AsChars(value));
          return OkStatus();
        }));
        ASSERT_EQ(found, expected[f]) << "seed " << seed << ", step " << step;
      }
    }
  }
}

// Collecting one push must not copy the others.
TEST_F(RocksStoreTest, CollectionLeavesFilesWithoutGarbageAlone) {
  const auto store = Open();
  for (const PushId push : {1, 2}) ASSERT_OK(PushModel(*store, push, 100, 50000));
  ASSERT_OK(store->CollectGarbage(nullptr));
  const auto blob_files = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir() + "/db"))
      if (entry.path().extension() == ".blob") names.insert(entry.path().filename().string());
    return names;
  };
  const std::set<std::string> before = blob_files();
  ASSERT_OK(PushModel(*store, 3, 100, 50000));
  ASSERT_OK(DropBlocks(*store, BlockKeyPrefix(3), BlockKeyPrefix(4)));
  ASSERT_OK(store->CollectGarbage(nullptr));
  EXPECT_EQ(blob_files(), before);
}

TEST_F(RocksStoreTest, ReadersAreNotDisturbedByCollection) {
  constexpr size_t kBlockBytes = 30000;
  const auto store = Open();
  for (const PushId push : {1, 2, 3, 4}) ASSERT_OK(PushModel(*store, push, 100, kBlockBytes));
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      for (uint32_t i = static_cast<uint32_t>(t); !stop; i = (i + 7) % 100) {
        const std::vector<std::string> keys = {BlockKey(1, i), BlockKey(3, i)};
        for (const auto& value : store->MultiGet(Family::kBlocks, keys)) {
          ASSERT_TRUE(value.ok()) << value.status().ToString();
          ASSERT_TRUE(OpenBlock(value->bytes()).ok());
        }
        ++reads;
      }
    });
  }
  for (const PushId push : {2, 4}) {
    EXPECT_OK(DropBlocks(*store, BlockKey(push, 10), BlockKeyPrefix(push + 1)));
    EXPECT_OK(store->CollectGarbage(nullptr));
  }
  while (reads < 100) std::this_thread::yield();
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace modelstore
