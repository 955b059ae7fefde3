// The sample configuration that is installed (docs/config.toml) says the truth.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "daemon/service/config.h"

namespace modelstore {
namespace {

class ConfigSampleTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() / ("modelstore-sample." + std::to_string(getpid()))).string();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  Result<Config> Load(const std::string& text) {
    std::ofstream(path_) << text;
    DaemonFlags flags;
    flags.config = path_;
    Environment environment;
    environment.root = true;
    return LoadConfig(flags, environment);
  }

  std::string path_;
};

TEST_F(ConfigSampleTest, EveryKeyIsThereWithItsDefault) {
  std::ifstream sample(MODELSTORE_SOURCE_DIR "/docs/config.toml");
  std::string uncommented;
  std::set<std::string> keys;
  for (std::string line; std::getline(sample, line);) {
    if (line.starts_with("# [")) uncommented += line.substr(2) + "\n";
    const size_t equals = line.find(" = ");
    if (!line.starts_with("# ") || equals == std::string::npos || line.find(' ', 2) != equals) continue;
    keys.insert(line.substr(2, equals - 2));
    uncommented += line.substr(2) + "\n";
  }
  EXPECT_EQ(keys, (std::set<std::string>{"store",
                                         "mount",
                                         "socket",
                                         "group",
                                         "memory_budget_bytes",
                                         "read_ahead_kb",
                                         "threads",
                                         "max_clients",
                                         "shutdown_seconds",
                                         "log_level",
                                         "log_format",
                                         "access_log",
                                         "metrics",
                                         "compact_below_free_bytes",
                                         "compact_max_drift",
                                         "compact_target_ratio",
                                         "layer_names",
                                         "mode",
                                         "memory_bytes",
                                         "plugin"}));
  const Result<Config> defaults = Load("");
  const Result<Config> loaded = Load(uncommented);
  ASSERT_TRUE(defaults.ok() && loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->store, defaults->store);
  EXPECT_EQ(loaded->mount, defaults->mount);
  EXPECT_EQ(loaded->socket, defaults->socket);
  EXPECT_EQ(loaded->group, defaults->group);
  EXPECT_EQ(loaded->memory_budget_bytes, defaults->memory_budget_bytes);
  EXPECT_EQ(loaded->read_ahead_kb, defaults->read_ahead_kb);
  EXPECT_EQ(loaded->threads, defaults->threads);
  EXPECT_EQ(loaded->max_clients, defaults->max_clients);
  EXPECT_EQ(loaded->shutdown_seconds, defaults->shutdown_seconds);
  EXPECT_EQ(loaded->compact_below_free_bytes, defaults->compact_below_free_bytes);
  EXPECT_EQ(loaded->compact_max_drift, defaults->compact_max_drift);
  EXPECT_EQ(loaded->compact_target_ratio, defaults->compact_target_ratio);
  EXPECT_EQ(loaded->layer_names, defaults->layer_names);
  EXPECT_EQ(loaded->log_level, defaults->log_level);
  EXPECT_EQ(loaded->log_format, defaults->log_format);
  EXPECT_EQ(loaded->access_log, defaults->access_log);
  EXPECT_EQ(loaded->metrics, defaults->metrics);
  EXPECT_EQ(loaded->gpu.mode, defaults->gpu.mode);
  EXPECT_EQ(loaded->gpu.memory_bytes, defaults->gpu.memory_bytes);
  EXPECT_EQ(loaded->gpu.plugin, defaults->gpu.plugin);
}

TEST_F(ConfigSampleTest, AsWrittenItChangesNothing) {
  std::ifstream sample(MODELSTORE_SOURCE_DIR "/docs/config.toml");
  for (std::string line; std::getline(sample, line);) EXPECT_TRUE(line.empty() || line.starts_with("# ")) << line;
}

TEST_F(ConfigSampleTest, NamesOfLayersAreAListOfStrings) {
  const Result<Config> loaded = Load("layer_names = [\"a.{}.\", \"b.{}.\"]");
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->layer_names, (std::vector<std::string>{"a.{}.", "b.{}."}));
  for (const char* wrong : {"layer_names = \"a\"", "layer_names = [1]", "layer_names = [\"a\"]"})
    EXPECT_EQ(Load(wrong).status().code(), StatusCode::kInvalidArgument) << wrong;
}

}  // namespace
}  // namespace modelstore
