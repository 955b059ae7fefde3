// What the tests of push and maintenance share (layer: tests): a store in a temporary folder, and checkpoints made from
// seeds.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/maintain.h"
#include "catalog/write/push.h"
#include "catalog/write/report.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

::testing::AssertionResult IsOk(const char* expression, const Status& status);
#define EXPECT_OK(expr) EXPECT_PRED_FORMAT1(::modelstore::IsOk, expr)
#define ASSERT_OK(expr) ASSERT_PRED_FORMAT1(::modelstore::IsOk, expr)

struct TestTensor {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<uint64_t> shape;
  Bytes bytes;
};

// Normal numbers of standard deviation `scale`, rounded to `dtype` (a floating-point type); the same for the same seed.
TestTensor RandomTensor(const std::string& name, std::vector<uint64_t> shape, uint64_t seed, DType dtype = DType::kBF16,
                        float scale = 0.05f);
// `base` with small normal noise on every element.
TestTensor Finetuned(const TestTensor& base, uint64_t seed, float noise = 0.0005f);
TestTensor Converted(const TestTensor& tensor, DType dtype);
TestTensor Renamed(TestTensor tensor, const std::string& name);
Bytes NoiseBytes(uint64_t seed, size_t size);
// A small checkpoint: an embedding, matrices and norms.
std::vector<TestTensor> SmallModel(uint64_t seed);
std::vector<TestTensor> FinetunedModel(const std::vector<TestTensor>& base, uint64_t seed);

Bytes SafetensorsFile(const std::vector<TestTensor>& tensors);

// A folder of its own for every test, removed whatever happens, and a catalog on the real store in it.
class ModelTest : public ::testing::Test {
 protected:
  ModelTest();
  ~ModelTest() override;

  const std::string& temp() const { return temp_; }
  std::string store_dir() const { return temp_ + "/store"; }
  // Opens the store (again); fails the test when it cannot.
  Catalog& Reopen(std::function<Status(uint64_t)> before_write = nullptr);
  // On a store in memory, where `before_write` is called once for each batch: nothing writes in the background.
  Catalog& OpenInMemory(std::function<Status(uint64_t)> before_write);
  Catalog& catalog() { return catalog_ ? *catalog_ : Reopen(); }
  void Close() { catalog_.reset(); }

  // Writes a source file below temp()/sources and returns the folder `model` it lies in.
  std::string WriteSource(const std::string& model, const std::string& file, ByteSpan bytes);
  std::string WriteModel(const std::string& model, const std::vector<TestTensor>& tensors) {
    return WriteSource(model, "model.safetensors", SafetensorsFile(tensors));
  }
  Result<PushReport> PushPath(const std::string& path, PushOptions options = {});
  PushReport MustPush(const std::string& path, PushOptions options = {});
  Result<PushReport> PushWith(const std::string& path, PushOptions options, JobControl& job);

  // The stored file decodes to these bytes.
  Bytes ReadStored(const std::string& model, const std::string& file);
  // Every file of the folder is in the model with the same bytes, and no other.
  void ExpectStored(const std::string& model, const std::string& folder);
  // Verify finds nothing wrong with the whole store.
  void ExpectClean();
  std::vector<std::string> ModelNames();
  ModelUsage UsageOf(const std::string& model);
  TensorUsage TensorOf(const std::string& model, const std::string& tensor);
  uint64_t CountKeys(Family family);

  JobControl job_;  // fails the test when more of a phase is done than there is
  std::vector<std::string> warnings_;

 private:
  std::string temp_;
  std::unique_ptr<Catalog> catalog_;
};

Bytes ReadPath(const std::string& path);
void WritePath(const std::string& path, ByteSpan bytes);

}  // namespace modelstore
