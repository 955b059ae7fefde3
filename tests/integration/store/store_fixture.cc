#include "tests/integration/store/store_fixture.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "catalog/schema/check.h"
#include "catalog/schema/records.h"

namespace modelstore {

namespace {
constexpr char kDirVariable[] = "MODELSTORE_TEST_CHILD_DIR";
constexpr int kProgressFd = 9;

// These tests sync tens of thousands of times and lose nothing in memory: a kill leaves the page cache alone.
std::filesystem::path TempRoot() {
  constexpr uint64_t kEnough = 512 << 20;
  struct statvfs vfs {};
  if (std::getenv("TMPDIR") == nullptr && ::access("/dev/shm", W_OK) == 0 && ::statvfs("/dev/shm", &vfs) == 0 &&
      uint64_t{vfs.f_bavail} * vfs.f_frsize >= kEnough)
    return "/dev/shm";
  return std::filesystem::temp_directory_path();
}

}  // namespace

StoreTest::StoreTest() {
  std::string pattern = (TempRoot() / "modelstore-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  temp_ = pattern;
}

StoreTest::~StoreTest() {
  std::error_code ec;
  std::filesystem::remove_all(temp_, ec);
}

StoreOptions StoreTest::options() const {
  StoreOptions options;
  options.create_if_missing = true;
  options.memory_budget_bytes = 16 << 20;
  return options;
}

std::unique_ptr<KvStore> StoreTest::Open(const StoreOptions& options) const {
  auto store = OpenRocksStore(dir(), options);
  EXPECT_TRUE(store.ok()) << store.status().ToString();
  return store.ok() ? std::move(*store) : nullptr;
}

::testing::AssertionResult IsOk(const char* expression, const Status& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << expression << ": " << status.ToString();
}

Bytes NoiseBytes(uint64_t seed, size_t size) {
  std::mt19937_64 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, size - i));
  }
  return bytes;
}

std::vector<std::string> KeysOf(const KvStore& store, Family family, std::string_view prefix) {
  std::vector<std::string> keys;
  EXPECT_OK(store.Scan(family, prefix, [&](std::string_view key, ByteSpan) {
    keys.emplace_back(key);
    return OkStatus();
  }));
  return keys;
}

Status FlushFamilies(KvStore& store, std::initializer_list<Family> families) {
  return store.Flush(std::span(families.begin(), families.size()));
}

uint64_t BlockSeed(uint64_t push, uint32_t index) { return push * 1000003 + index; }

Status PushModel(KvStore& store, uint64_t push, uint32_t blocks, size_t block_bytes) {
  for (uint32_t i = 0; i < blocks; ++i) {
    WriteBatch batch;
    batch.Put(Family::kBlocks, BlockKey(push, i), SealBlock(NoiseBytes(BlockSeed(push, i), block_bytes)));
    RETURN_IF_ERROR(store.Write(batch, Durability::kNone));
  }
  RETURN_IF_ERROR(FlushFamilies(store, {Family::kBlocks}));
  CatalogMeta meta;
  if (const auto value = store.Get(Family::kMeta, kCatalogMetaKey); value.ok()) {
    ASSIGN_OR_RETURN(meta, ParseCatalogMeta(value->bytes()));
  } else if (value.status().code() != StatusCode::kNotFound) {
    return value.status();
  }
  ModelRecord model;
  model.id = meta.next_model++;
  model.name = "m" + std::to_string(push);
  model.push = push;
  model.logical_bytes = blocks;
  meta.next_push = push + 1;
  meta.model_count += 1;
  meta.model_digest ^= ModelDigest(model);
  WriteBatch batch;
  batch.Put(Family::kModels, model.name, Serialize(model));
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  RETURN_IF_ERROR(store.Write(batch, Durability::kSync));
  return FlushFamilies(store, {Family::kModels, Family::kMeta});
}

std::vector<std::string> CheckedModels(const KvStore& store) {
  EXPECT_OK(CheckCatalog(store));
  std::vector<std::string> names;
  EXPECT_OK(store.Scan(Family::kModels, "", [&](std::string_view key, ByteSpan value) -> Status {
    ASSIGN_OR_RETURN(const ModelRecord model, ParseModelRecord(value));
    for (uint32_t i = 0; i < model.logical_bytes; ++i) {
      ASSIGN_OR_RETURN(const StoredValue block, store.Get(Family::kBlocks, BlockKey(model.push, i)));
      ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(block.bytes()));
      const Bytes expected = NoiseBytes(BlockSeed(model.push, i), coded.size());
      if (AsChars(coded) != AsChars(expected)) return Corruption("block " + std::to_string(i) + " of " + model.name);
    }
    names.emplace_back(key);
    return OkStatus();
  }));
  return names;
}

pid_t StartChild(const std::string& test, const std::string& dir, int* progress) {
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return -1;
  const std::string filter = "--gtest_filter=" + test;
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(pipe_fds[1], kProgressFd);
    ::setenv(kDirVariable, dir.c_str(), 1);
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::execl("/proc/self/exe", "store-child", filter.c_str(), "--gtest_also_run_disabled_tests", nullptr);
    ::_exit(127);
  }
  ::close(pipe_fds[1]);
  *progress = pipe_fds[0];
  return pid;
}

std::string ChildDir() {
  const char* dir = std::getenv(kDirVariable);
  return dir != nullptr ? dir : "";
}

void ReportProgress() {
  const char byte = '.';
  if (::write(kProgressFd, &byte, 1) != 1) std::abort();
}

}  // namespace modelstore
