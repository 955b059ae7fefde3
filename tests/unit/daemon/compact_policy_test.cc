#include "daemon/service/compact_policy.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "catalog/write/push.h"

namespace modelstore {
namespace {

ModelRecord Model(ModelId id, int64_t created_ns, ModelId base = 1) {
  ModelRecord model;
  model.id = id;
  model.push = id + 100;
  model.created_ns = created_ns;
  model.base = base;
  model.allow_compact = true;
  return model;
}

TEST(NextToCompact, IsTheOldestThatAllowsIt) {
  std::vector<ModelRecord> models = {Model(1, 1, 0), Model(2, 30), Model(3, 20), Model(4, 10)};
  models[3].allow_compact = false;
  EXPECT_EQ(NextToCompact(models, {})->id, 3u);
  EXPECT_EQ(NextToCompact(models, {{3, 103}})->id, 2u) << "in vain before";
  EXPECT_EQ(NextToCompact(models, {{3, 7}})->id, 3u) << "pushed again since";
  EXPECT_FALSE(NextToCompact(models, {{3, 103}, {2, 102}}).has_value());
}

TEST(NextToCompact, PassesOverBasesAndCompactModels) {
  std::vector<ModelRecord> models = {Model(1, 1, 0), Model(2, 10), Model(3, 20, 2), Model(4, 5)};
  models[3].fidelity = Fidelity::kCompact;
  EXPECT_EQ(NextToCompact(models, {})->id, 3u) << "2 is the base of 3, 1 has no base, 4 is compact";
  EXPECT_FALSE(NextToCompact({}, {}).has_value());
}

// One matrix of BF16 numbers between 1 and 2, `change` of them in 64 in the last place but one.
void WriteModel(const std::string& path, unsigned change) {
  constexpr uint32_t kRows = 512, kColumns = 256;
  std::string data;
  uint32_t state = 1;
  for (uint32_t i = 0; i < kRows * kColumns; ++i) {
    state = state * 1664525 + 1013904223;
    uint32_t bits = 0x3f80 | (state >> 25);
    if ((state >> 8) % 64 < change) bits ^= 2;
    data += static_cast<char>(bits & 0xff);
    data += static_cast<char>(bits >> 8);
  }
  std::string header =
      R"({"w":{"dtype":"BF16","shape":[512,256],"data_offsets":[0,)" + std::to_string(data.size()) + "]}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t bytes = header.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&bytes), 8);
  out << header << data;
}

class CompactPolicyTest : public testing::Test {
 protected:
  CompactPolicyTest()
      : folder_(std::filesystem::temp_directory_path() / ("modelstore-policy." + std::to_string(getpid()))) {
    std::filesystem::create_directory(folder_);
    config_.store = (folder_ / "store").string();
    CatalogOptions options;
    options.create_if_missing = true;
    options.memory_budget_bytes = 256 << 20;
    Result<std::unique_ptr<Catalog>> catalog = Catalog::Open(config_.store, options);
    EXPECT_TRUE(catalog.ok()) << catalog.status().ToString();
    catalog_ = std::move(catalog).value();
    Push("base", 0, false);
    Push("allowed", 20, true);
    Push("not-allowed", 30, false);
  }
  ~CompactPolicyTest() override {
    catalog_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Push(const std::string& name, unsigned change, bool allow) {
    const std::string path = (folder_ / (name + ".safetensors")).string();
    WriteModel(path, change);
    Result<SourceTree> source = SourceTree::Scan(path);
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    PushOptions options;
    options.name = name;
    options.allow_compact = allow;
    JobControl job;
    const Status status = modelstore::Push(*catalog_, *source, options, job).status();
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  ModelRecord Find(const std::string& name) { return *catalog_->FindModel(name); }

  const std::filesystem::path folder_;
  Config config_;
  std::unique_ptr<Catalog> catalog_;
};

TEST_F(CompactPolicyTest, MakesWhatAllowsItCompactWhenSpaceIsShort) {
  config_.compact_below_free_bytes = UINT64_MAX;  // always short
  config_.compact_max_drift = 0.9;
  ASSERT_TRUE(Find("allowed").allow_compact);
  ServerState state(*catalog_, 10);
  const auto policy = CompactPolicy::Start(config_, &state);
  ASSERT_TRUE(policy.ok()) << policy.status().ToString();
  while (Find("allowed").fidelity != Fidelity::kCompact) {
    ASSERT_FALSE(HasFailure());
    std::this_thread::yield();
  }
  EXPECT_LE(Find("allowed").drift, 0.9);
  EXPECT_EQ(Find("not-allowed").fidelity, Fidelity::kExact);
  EXPECT_EQ(Find("base").fidelity, Fidelity::kExact);
}

TEST_F(CompactPolicyTest, NeverGoesBeyondTheDrift) {
  config_.compact_below_free_bytes = UINT64_MAX;
  config_.compact_max_drift = 0;
  ServerState state(*catalog_, 10);
  {
    const auto policy = CompactPolicy::Start(config_, &state);
    ASSERT_TRUE(policy.ok()) << policy.status().ToString();
    // Until the job came and went.
    while (state.jobs.List().empty()) std::this_thread::yield();
    while (!state.jobs.List().empty()) std::this_thread::yield();
  }
  // Exact, or compact without any error: a residual that knows the rounding may meet every value.
  EXPECT_EQ(Find("allowed").drift, 0);
}

TEST_F(CompactPolicyTest, DoesNothingWhileThereIsRoom) {
  config_.compact_below_free_bytes = 1;
  ServerState state(*catalog_, 10);
  ASSERT_TRUE(CompactPolicy::Start(config_, &state).ok());
  EXPECT_EQ(Find("allowed").fidelity, Fidelity::kExact);
}

}  // namespace
}  // namespace modelstore
