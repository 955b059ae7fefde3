// What a store survives: writes that fail at any point, kills at any point, damaged files.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <fstream>
#include <new>
#include <optional>
#include <random>
#include <thread>

#include "catalog/schema/check.h"
#include "catalog/schema/records.h"
#include "tests/integration/store/store_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

using StoreFaults = StoreTest;

constexpr uint32_t kBlocks = 6;
constexpr size_t kBlockBytes = 20000;

// Takes model "mN" out, then its blocks, as `rm` and `prune` do.
Status RemoveModel(KvStore& store, uint64_t push) {
  const std::string name = "m" + std::to_string(push);
  ASSIGN_OR_RETURN(const StoredValue model_value, store.Get(Family::kModels, name));
  ASSIGN_OR_RETURN(const ModelRecord model, ParseModelRecord(model_value.bytes()));
  ASSIGN_OR_RETURN(const StoredValue meta_value, store.Get(Family::kMeta, kCatalogMetaKey));
  ASSIGN_OR_RETURN(CatalogMeta meta, ParseCatalogMeta(meta_value.bytes()));
  meta.model_count -= 1;
  meta.model_digest ^= ModelDigest(model);
  WriteBatch remove;
  remove.Delete(Family::kModels, name);
  remove.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  RETURN_IF_ERROR(store.Write(remove, Durability::kSync));
  WriteBatch free;
  free.DeleteRange(Family::kBlocks, BlockKeyPrefix(push), BlockKeyPrefix(push + 1));
  RETURN_IF_ERROR(store.Write(free, Durability::kSync));
  return store.CollectGarbage(nullptr);
}

// Everything a store's life has: two pushes, a removal, garbage collection.
Status PushTwoRemoveOne(KvStore& store) {
  RETURN_IF_ERROR(PushModel(store, 2, kBlocks, kBlockBytes));
  RETURN_IF_ERROR(PushModel(store, 3, kBlocks, kBlockBytes));
  return RemoveModel(store, 2);
}

// Fails the write number `fail_at`, and all later ones when `for_good`.
struct FailingWrites {
  uint64_t fail_at;
  bool for_good;
  StatusCode code;
  std::atomic<uint64_t> calls{0};

  Status operator()(uint64_t) {
    const uint64_t call = ++calls;
    if (call < fail_at || (call > fail_at && !for_good)) return OkStatus();
    return Status(code, "injected failure of write " + std::to_string(fail_at));
  }
};

class FailingWriteTest : public StoreTest, public ::testing::WithParamInterface<std::tuple<bool, StatusCode>> {};

INSTANTIATE_TEST_SUITE_P(All, FailingWriteTest,
                         ::testing::Combine(::testing::Bool(),
                                            ::testing::Values(StatusCode::kNoSpace, StatusCode::kIo)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param) ? "ForGood" : "Once") +
                                  (std::get<1>(param.param) == StatusCode::kIo ? "Io" : "NoSpace");
                         });

// Without that RocksDB's next writer waits for ever for the one that is gone.
TEST_F(StoreFaults, AfterAWriteThatRunsOutOfMemoryNobodyWaitsForIt) {
  ASSERT_OK(PushModel(*Open(), 1, kBlocks, kBlockBytes));
  {
    const std::thread::id writer = std::this_thread::get_id();
    std::atomic<bool> fail{false};
    StoreOptions with_hook = options();
    with_hook.before_write = [&](uint64_t) {
      if (std::this_thread::get_id() == writer && fail.exchange(false)) throw std::bad_alloc();
      return OkStatus();
    };
    auto store = OpenRocksStore(dir(), with_hook);
    ASSERT_OK(store.status());
    fail = true;
    EXPECT_EQ(PushModel(**store, 2, kBlocks, kBlockBytes).code(), StatusCode::kResourceExhausted);
    ASSERT_FALSE(fail) << "nothing was written";
    const Status next = PushModel(**store, 3, kBlocks, kBlockBytes);
    EXPECT_EQ(next.code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(next.ToString(), ::testing::HasSubstr("until it is opened again"));
    EXPECT_THAT(CheckedModels(**store), ::testing::Contains("m1"));
  }
  const auto store = Open();
  ASSERT_NE(store, nullptr);
  EXPECT_OK(PushModel(*store, 4, kBlocks, kBlockBytes));
  EXPECT_THAT(CheckedModels(*store), ::testing::IsSupersetOf({"m1", "m4"}));
}

TEST_P(FailingWriteTest, EveryWriteMayFailAndPublishedModelsStay) {
  const auto [for_good, code] = GetParam();
  ASSERT_OK(PushModel(*Open(), 1, kBlocks, kBlockBytes));
  const std::string pristine = temp() + "/pristine";
  fs::rename(dir(), pristine);

  bool finished = false;
  for (uint64_t fail_at = 1; !finished; ++fail_at) {
    ASSERT_LT(fail_at, 2000u);
    fs::remove_all(dir());
    fs::copy(pristine, dir(), fs::copy_options::recursive);
    FailingWrites failing{fail_at, for_good, code};
    Status status;
    {
      StoreOptions with_hook = options();
      with_hook.before_write = [&](uint64_t bytes) { return failing(bytes); };
      auto store = OpenRocksStore(dir(), with_hook);
      status = store.ok() ? PushTwoRemoveOne(**store) : store.status();
      if (store.ok()) {
        // Whatever failed, what was published can be read without reopening.
        const auto names = CheckedModels(**store);
        EXPECT_TRUE(std::ranges::count(names, "m1")) << "write " << fail_at;
      }
    }
    finished = failing.calls < fail_at;
    if (status.ok() || finished) {
      EXPECT_OK(status);
    } else {
      EXPECT_EQ(status.code(), code) << "write " << fail_at << ": " << status.ToString();
    }

    const auto store = Open();
    ASSERT_NE(store, nullptr) << "write " << fail_at << ": " << status.ToString();
    const std::vector<std::string> names = CheckedModels(*store);
    ASSERT_FALSE(HasFailure()) << "write " << fail_at << ": " << status.ToString();
    EXPECT_TRUE(std::ranges::count(names, "m1"));
    if (status.ok()) {
      EXPECT_EQ(names, (std::vector<std::string>{"m1", "m3"}));
    }
    // And the store goes on.
    ASSERT_OK(PushModel(*store, 9, 1, kBlockBytes));
    ASSERT_OK(store->CollectGarbage(nullptr));
    ASSERT_OK(store->VerifyChecksums());
  }
}

TEST_F(StoreFaults, CreationMayFailAtEveryWrite) {
  bool finished = false;
  for (uint64_t fail_at = 1; !finished; ++fail_at) {
    ASSERT_LT(fail_at, 500u);
    fs::remove_all(dir());
    FailingWrites failing{fail_at, true, StatusCode::kNoSpace};
    StoreOptions with_hook = options();
    with_hook.before_write = [&](uint64_t bytes) { return failing(bytes); };
    { const auto store = OpenRocksStore(dir(), with_hook); }
    finished = failing.calls < fail_at;
    StoreOptions to_read = options();
    to_read.read_only = true;
    {
      const auto reader = OpenRocksStore(dir(), to_read);
      EXPECT_TRUE(reader.ok() || reader.status().code() == StatusCode::kNotFound)
          << "write " << fail_at << ": " << reader.status().ToString();
    }
    const auto store = Open();
    ASSERT_NE(store, nullptr) << "write " << fail_at;
    ASSERT_OK(PushModel(*store, 1, 1, kBlockBytes));
  }
}

// A failed write leaves the store readable; writes wait for the next opening.
TEST_F(StoreFaults, AfterAFailedWriteReadsGoOnAndWritesSayWhy) {
  std::atomic<bool> full{false};
  StoreOptions with_hook = options();
  with_hook.before_write = [&](uint64_t) { return full ? NoSpace("the test's disk is full") : OkStatus(); };
  {
    const auto store = Open(with_hook);
    ASSERT_OK(PushModel(*store, 1, kBlocks, kBlockBytes));
    full = true;
    EXPECT_EQ(PushModel(*store, 2, kBlocks, kBlockBytes).code(), StatusCode::kNoSpace);
    full = false;
    const Status refused = PushModel(*store, 3, kBlocks, kBlockBytes);
    EXPECT_EQ(refused.code(), StatusCode::kNoSpace);
    EXPECT_NE(refused.message().find("opened again"), std::string_view::npos) << refused.message();
    EXPECT_EQ(CheckedModels(*store), std::vector<std::string>{"m1"});
  }
  const auto store = Open();
  ASSERT_OK(PushModel(*store, 4, kBlocks, kBlockBytes));
  EXPECT_EQ(CheckedModels(*store), (std::vector<std::string>{"m1", "m4"}));
}

// --- kills ---

// Pushes for ever and removes every second model, reporting each push that was acknowledged.
TEST(StoreChild, DISABLED_PushesUntilKilled) {
  StoreOptions options;
  options.create_if_missing = true;
  options.memory_budget_bytes = 16 << 20;
  const auto store = OpenRocksStore(ChildDir(), options);
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  CatalogMeta meta;
  ASSERT_OK(CheckCatalog(**store, &meta));
  for (uint64_t push = meta.next_push;; ++push) {
    ASSERT_OK(PushModel(**store, push, kBlocks, kBlockBytes));
    ReportProgress();
    if (push % 2 == 0) {
      const Status removed = RemoveModel(**store, push - 1);
      ASSERT_TRUE(removed.ok() || removed.code() == StatusCode::kNotFound) << removed.ToString();
    }
  }
}

TEST_F(StoreFaults, KilledAnywhereEveryAcknowledgedPushIsThere) {
  std::mt19937_64 random(3);
  uint64_t acknowledged = 0;
  for (int round = 0; round < 12; ++round) {
    int progress = -1;
    const pid_t child = StartChild("StoreChild.DISABLED_PushesUntilKilled", dir(), &progress);
    ASSERT_GT(child, 0);
    char byte = 0;
    uint64_t reported = random() % 4;
    for (uint64_t i = 0; i < reported; ++i) ASSERT_EQ(::read(progress, &byte, 1), 1);
    ::usleep(static_cast<useconds_t>(random() % 60000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    while (::read(progress, &byte, 1) == 1) ++reported;
    ::close(progress);

    const auto store = Open();
    ASSERT_NE(store, nullptr) << "round " << round;
    const std::vector<std::string> names = CheckedModels(*store);
    uint64_t newest = 0;
    for (const std::string& name : names) newest = std::max<uint64_t>(newest, std::stoull(name.substr(1)));
    EXPECT_GE(newest, acknowledged + reported) << "round " << round;
    acknowledged = newest;
    ASSERT_OK(store->VerifyChecksums());
    ASSERT_FALSE(HasFailure()) << "round " << round;
  }
  EXPECT_GT(acknowledged, 0u);
}

// --- damage ---

std::vector<fs::path> FilesOf(const std::string& dir, const std::string& extension) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(dir + "/db"))
    if (entry.path().extension() == extension && entry.file_size() > 0) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// Flips bits of one byte for the life of the object.
class Flip {
 public:
  Flip(fs::path path, uint64_t offset, int mask = 0x10) : path_(std::move(path)), offset_(offset), mask_(mask) {
    Toggle();
  }
  ~Flip() { Toggle(); }

 private:
  void Toggle() const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset_));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(offset_));
    file.put(static_cast<char>(byte ^ mask_));
  }
  fs::path path_;
  uint64_t offset_;
  int mask_;
};

TEST_F(StoreFaults, ChecksumsNoticeAFlippedByteInEveryFile) {
  ASSERT_OK(PushModel(*Open(), 1, kBlocks, kBlockBytes));
  ASSERT_OK(Open()->VerifyChecksums());
  std::vector<fs::path> files = FilesOf(dir(), ".blob");
  ASSERT_FALSE(files.empty());
  const std::vector<fs::path> tables = FilesOf(dir(), ".sst");
  ASSERT_GE(tables.size(), 3u);  // blocks, models, meta
  files.insert(files.end(), tables.begin(), tables.end());
  for (const fs::path& file : files) {
    for (const uint64_t offset : {uint64_t{10}, fs::file_size(file) / 2}) {
      const Flip flip(file, offset);
      auto store = OpenRocksStore(dir(), options());
      const Status status = store.ok() ? (*store)->VerifyChecksums() : store.status();
      EXPECT_EQ(status.code(), StatusCode::kCorruption) << file << " at " << offset << ": " << status.ToString();
      // What RocksDB notices when it opens an SST it tells under whatever name it has at hand.
      if (store.ok()) {
        EXPECT_NE(status.message().find(file.filename().string()), std::string_view::npos) << status.message();
      }
    }
  }
}

// A read gives the stored bytes or an error, whatever byte of the index or of the values is wrong.
TEST_F(StoreFaults, DamageNeverReadsAsOtherBytes) {
  ASSERT_OK(PushModel(*Open(), 1, kBlocks, kBlockBytes));
  std::vector<fs::path> files = FilesOf(dir(), ".sst");
  const std::vector<fs::path> blobs = FilesOf(dir(), ".blob");
  files.insert(files.end(), blobs.begin(), blobs.end());
  uint64_t errors = 0;
  for (const fs::path& file : files) {
    const uint64_t size = fs::file_size(file);
    for (uint64_t offset = 1; offset < size; offset += std::max<uint64_t>(11, size / 90)) {
      const Flip flip(file, offset, 1 << offset % 8);
      StoreOptions read_only = options();
      read_only.read_only = true;
      read_only.create_if_missing = false;
      const auto store = OpenRocksStore(dir(), read_only);
      if (!store.ok()) {
        ++errors;
        continue;
      }
      for (uint32_t i = 0; i < kBlocks; ++i) {
        const auto value = (*store)->Get(Family::kBlocks, BlockKey(1, i));
        const auto coded = value.ok() ? OpenBlock(value->bytes()) : Result<ByteSpan>(value.status());
        if (!coded.ok()) {
          ++errors;
          continue;
        }
        ASSERT_EQ(AsChars(*coded), AsChars(NoiseBytes(BlockSeed(1, i), kBlockBytes))) << file << " at " << offset;
      }
      (void)CheckCatalog(**store);
    }
  }
  EXPECT_GT(errors, 0u);
}

class LogTest : public StoreTest {
 protected:
  // Three acknowledged writes that are only in the log.
  fs::path WriteLog() {
    {
      const auto store = Open();
      for (const char* key : {"a", "b", "c"}) {
        WriteBatch batch;
        batch.Put(Family::kModels, key, NoiseBytes(7, 500));
        EXPECT_OK(store->Write(batch, Durability::kSync));
      }
    }
    const std::vector<fs::path> logs = FilesOf(dir(), ".log");
    EXPECT_EQ(logs.size(), 1u);
    return logs.front();
  }
};

TEST_F(LogTest, TornTailIsAWriteThatDidNotHappen) {
  const fs::path log = WriteLog();
  fs::resize_file(log, fs::file_size(log) - 100);
  EXPECT_EQ(KeysOf(*Open(), Family::kModels), (std::vector<std::string>{"a", "b"}));
}

TEST_F(LogTest, DamageInTheMiddleIsCorruptionAndNotARollback) {
  const fs::path log = WriteLog();
  {
    const Flip flip(log, 200);
    EXPECT_EQ(OpenRocksStore(dir(), options()).status().code(), StatusCode::kCorruption);
  }
  EXPECT_EQ(KeysOf(*Open(), Family::kModels), (std::vector<std::string>{"a", "b", "c"}));
}

TEST_F(StoreFaults, DamagedManifestIsCorruption) {
  ASSERT_OK(PushModel(*Open(), 1, 1, kBlockBytes));
  for (const auto& entry : fs::directory_iterator(dir() + "/db")) {
    if (!entry.path().filename().string().starts_with("MANIFEST")) continue;
    const Flip flip(entry.path(), entry.file_size() / 2);
    EXPECT_EQ(OpenRocksStore(dir(), options()).status().code(), StatusCode::kCorruption);
  }
  EXPECT_EQ(CheckedModels(*Open()), std::vector<std::string>{"m1"});
}

}  // namespace
}  // namespace modelstore
