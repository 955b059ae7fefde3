// What the tests of the store share (layer: tests): a temporary folder, bytes from a seed, and children that are this
// program again, because a forked RocksDB has no threads.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "catalog/store/kv_store.h"

namespace modelstore {

// A folder of its own for every test, removed whatever happens.
class StoreTest : public ::testing::Test {
 protected:
  StoreTest();
  ~StoreTest() override;

  const std::string& temp() const { return temp_; }
  std::string dir() const { return temp_ + "/store"; }
  StoreOptions options() const;  // creating, with a small budget
  std::unique_ptr<KvStore> Open() const { return Open(options()); }
  std::unique_ptr<KvStore> Open(const StoreOptions& options) const;  // fails the test when it cannot

 private:
  std::string temp_;
};

::testing::AssertionResult IsOk(const char* expression, const Status& status);
#define EXPECT_OK(expr) EXPECT_PRED_FORMAT1(::modelstore::IsOk, expr)
#define ASSERT_OK(expr) ASSERT_PRED_FORMAT1(::modelstore::IsOk, expr)

// Incompressible bytes, the same for the same seed.
Bytes NoiseBytes(uint64_t seed, size_t size);
std::vector<std::string> KeysOf(const KvStore& store, Family family, std::string_view prefix = "");
Status FlushFamilies(KvStore& store, std::initializer_list<Family> families);

// A small push in the order of docs/format.md, "Write order": `blocks` blocks of `block_bytes`, then model "mN" and the
// catalog record. Its blocks hold NoiseBytes(BlockSeed(push, i), block_bytes).
Status PushModel(KvStore& store, uint64_t push, uint32_t blocks, size_t block_bytes);
uint64_t BlockSeed(uint64_t push, uint32_t index);
// The catalog is consistent, and every model in it has all its blocks with the right bytes. Names of the models.
std::vector<std::string> CheckedModels(const KvStore& store);

// Starts this program again to run one (disabled) test as a child, with `dir` for ChildDir(). The read end of a pipe
// that the child writes its progress to is returned in `progress`.
pid_t StartChild(const std::string& test, const std::string& dir, int* progress);
std::string ChildDir();
// One byte to the parent.
void ReportProgress();

}  // namespace modelstore
