#include "daemon/service/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "daemon/service/log_setup.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = fs::temp_directory_path().string() + "/modelstore-config.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    environment_ = {.root = false,
                    .home = dir_ + "/home",
                    .xdg_data_home = "",
                    .xdg_config_home = dir_,
                    .xdg_runtime_dir = dir_ + "/run"};
  }
  void TearDown() override { fs::remove_all(dir_); }

  Result<Config> Load(const std::string& text, DaemonFlags flags = {}) {
    flags.config = dir_ + "/given.toml";
    std::ofstream(*flags.config) << text;
    return LoadConfig(flags, environment_);
  }
  std::string ErrorOf(const std::string& text) {
    const Status status = Load(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.ToString();
    return std::string(status.message());
  }

  std::string dir_;
  Environment environment_;
};

TEST_F(ConfigTest, DefaultsOfRootAndOfOthers) {
  const Result<Config> root = Load("", {});
  environment_.root = true;
  const Result<Config> system = LoadConfig({.config = dir_ + "/given.toml"}, environment_);
  ASSERT_TRUE(system.ok()) << system.status().ToString();
  EXPECT_EQ(system->store, "/var/lib/modelstore");
  EXPECT_EQ(system->mount, "/models");
  EXPECT_EQ(system->socket, "/run/modelstore/modelstore.sock");
  EXPECT_EQ(system->group, "modelstore");
  EXPECT_EQ(system->memory_budget_bytes, 2ull << 30);
  ASSERT_TRUE(root.ok());
  EXPECT_EQ(root->store, dir_ + "/home/.local/share/modelstore");
  EXPECT_EQ(root->mount, dir_ + "/home/models");
  EXPECT_EQ(root->socket, dir_ + "/run/modelstore/modelstore.sock");
}

TEST_F(ConfigTest, TheDefaultFileIsReadWhenItExists) {
  EXPECT_EQ(LoadConfig({}, environment_)->max_clients, 256u);
  fs::create_directories(dir_ + "/modelstore");
  std::ofstream(dir_ + "/modelstore/config.toml") << "max_clients = 7\n";
  EXPECT_EQ(LoadConfig({}, environment_)->max_clients, 7u);
  EXPECT_EQ(LoadConfig({.config = dir_ + "/none.toml"}, environment_).status().code(), StatusCode::kNotFound);
}

TEST_F(ConfigTest, AUserWithoutTheirVariablesIsToldWhatToPass) {
  environment_ = {};
  EXPECT_NE(LoadConfig({}, environment_).status().message().find("--store"), std::string_view::npos);
  EXPECT_NE(LoadConfig({.store = "/s"}, environment_).status().message().find("--socket"), std::string_view::npos);
  EXPECT_TRUE(LoadConfig({.store = "/s", .socket = "/x"}, environment_).ok());
}

TEST_F(ConfigTest, EveryKey) {
  const Result<Config> config = Load(
      "store = \"/s\"\nmount = \"\"\nsocket = \"/x\"\ngroup = \"g\"\nmemory_budget_bytes = \"2G\"\nread_ahead_kb = "
      "128\n"
      "threads = 3\nmax_clients = 10\nshutdown_seconds = 5\nlog_level = \"warning\"\nlog_format = \"json\"\n"
      "access_log = true\n");
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->store, "/s");
  EXPECT_EQ(config->mount, "");
  EXPECT_EQ(config->socket, "/x");
  EXPECT_EQ(config->group, "g");
  EXPECT_EQ(config->memory_budget_bytes, 2ull << 30);
  EXPECT_EQ(config->read_ahead_kb, 128u);
  EXPECT_EQ(config->threads, 3u);
  EXPECT_EQ(config->max_clients, 10u);
  EXPECT_EQ(config->shutdown_seconds, 5u);
  EXPECT_EQ(config->log_level, LogLevel::kWarning);
  EXPECT_EQ(config->log_format, LogFormat::kJson);
  EXPECT_TRUE(config->access_log);
}

TEST_F(ConfigTest, FlagsWinOverTheFileAndPathsAreAbsolute) {
  const Result<Config> config =
      Load("store = \"/s\"\nmount = \"/m\"\nsocket = \"/x\"\n", {.store = "rel/../st", .mount = "", .socket = "/y"});
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->store, fs::current_path().string() + "/st");
  EXPECT_EQ(config->mount, "");
  EXPECT_EQ(config->socket, "/y");
}

TEST_F(ConfigTest, ATildeIsTheHomeFolder) {
  const Result<Config> config = Load(
      "store = \"~/st\"\nmount = \"~/m\"\nsocket = \"~/x\"\nmetrics = \"~/metrics\"\n[gpu]\nplugin = \"~/p.so\"\n");
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->store, dir_ + "/home/st");
  EXPECT_EQ(config->mount, dir_ + "/home/m");
  EXPECT_EQ(config->socket, dir_ + "/home/x");
  EXPECT_EQ(config->metrics, dir_ + "/home/metrics");
  EXPECT_EQ(config->gpu.plugin, dir_ + "/home/p.so");
  EXPECT_EQ(Load("", {.store = "~/flag"})->store, dir_ + "/home/flag");
  EXPECT_EQ(Load("metrics = \"127.0.0.1:9\"")->metrics, "127.0.0.1:9");
}

// As a unit of systemd runs it.
TEST_F(ConfigTest, ATildeWithoutAHomeIsRefused) {
  environment_ = {};
  environment_.root = true;
  const std::string error = ErrorOf("store = \"~/st\"\n");
  EXPECT_NE(error.find("store: ~/st: the environment has no HOME"), std::string::npos) << error;
  environment_.home = "/root";
  EXPECT_NE(ErrorOf("mount = \"~ann/m\"\n").find("mount: ~ann/m: other users"), std::string::npos);
}

TEST_F(ConfigTest, AFolderIsNoFile) {
  const Status folder = LoadConfig({.config = dir_}, environment_).status();
  EXPECT_EQ(folder.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(folder.message(), "the configuration " + dir_ + " is a folder; name the file in it");
}

TEST_F(ConfigTest, SizesAreWrittenAsOnTheCommandLine) {
  EXPECT_EQ(Load("memory_budget_bytes = \"2GB\"")->memory_budget_bytes, 2'000'000'000u);
  EXPECT_EQ(Load("memory_budget_bytes = \"512MiB\"")->memory_budget_bytes, 512u << 20);
}

TEST_F(ConfigTest, AnUnknownKeyIsNamedWithItsLineAndTheNearestKnownOne) {
  const std::string error = ErrorOf("store = \"/s\"\nmemory_budget = 5\n");
  EXPECT_NE(error.find("given.toml:2"), std::string::npos) << error;
  EXPECT_NE(error.find("'memory_budget'"), std::string::npos) << error;
  EXPECT_NE(error.find("'memory_budget_bytes'"), std::string::npos) << error;
  EXPECT_NE(ErrorOf("[gpus]\nmode = 1\n").find("gpus"), std::string::npos);
}

TEST_F(ConfigTest, TheTableOfTheGpu) {
  const Result<Config> config =
      Load("threads = 3\n[gpu]\nmode = \"off\"\nmemory_bytes = \"1G\"\nplugin = \"/p.so\"\n", {});
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->threads, 3u);
  EXPECT_EQ(config->gpu.mode, "off");
  EXPECT_EQ(config->gpu.memory_bytes, 1u << 30);
  EXPECT_EQ(config->gpu.plugin, "/p.so");
  EXPECT_EQ(Load("[gpu]\nmode = 2\n", {})->gpu.mode, "2");
  EXPECT_EQ(Load("[gpu]\nmode = \"1\"\n", {})->gpu.mode, "1");
  EXPECT_EQ(Load("", {})->gpu.mode, "auto");
  for (const char* mode : {"\"on\"", "-1", "true", "\"\"", "\"1x\"", "5000"})
    EXPECT_NE(ErrorOf(std::string("[gpu]\nmode = ") + mode + "\n").find("gpu.mode: expected"), std::string::npos)
        << mode;
  const std::string error = ErrorOf("[gpu]\nmod = 1\n");
  EXPECT_NE(error.find("unknown key 'gpu.mod'; the nearest known one is 'gpu.mode'"), std::string::npos) << error;
  EXPECT_NE(ErrorOf("gpu = 1\n").find("gpu is a table"), std::string::npos);
}

TEST_F(ConfigTest, WrongTypesAndValues) {
  const std::pair<const char*, const char*> kCases[] = {
      {"store = 5", "store: expected a string, found integer"},
      {"max_clients = \"5\"", "max_clients: expected an integer"},
      {"max_clients = 0", "expected a number from 1"},
      {"max_clients = -3", "found -3"},
      {"read_ahead_kb = 5.0", "expected an integer"},
      {"memory_budget_bytes = \"2X\"", "memory_budget_bytes: expected bytes"},
      {"memory_budget_bytes = \"99999999999T\"", "expected bytes"},
      {"memory_budget_bytes = \"1K\"", "expected at least"},
      {"memory_budget_bytes = -1", "expected bytes"},
      {"memory_budget_bytes = true", "expected bytes"},
      {"log_level = \"loud\"", "debug, info, warning, error"},
      {"access_log = 1", "true or false"},
      {"store = ", "given.toml:1"},
      {"store = \"a\"\nstore = \"b\"", "given.toml:2"},
  };
  for (const auto& [text, expected] : kCases) {
    const std::string error = ErrorOf(text);
    EXPECT_NE(error.find(expected), std::string::npos) << text << ": " << error;
  }
}

TEST(DaemonFlagsTest, BothForms) {
  const Result<DaemonFlags> flags = ParseFlags({"--store", "/s", "--mount=", "--config=/c", "--socket", "/x"});
  ASSERT_TRUE(flags.ok());
  EXPECT_EQ(flags->store, "/s");
  EXPECT_EQ(flags->mount, "");
  EXPECT_EQ(flags->config, "/c");
  EXPECT_EQ(flags->socket, "/x");
  EXPECT_TRUE(ParseFlags({"--version"})->version);
  for (const char* bad : {"--stor", "x", "--store"}) EXPECT_FALSE(ParseFlags({bad}).ok()) << bad;
}

TEST(LogLineTest, TextStaysOneLine) {
  const LogField fields[] = {{"plain", "a/b-1"}, {"empty", ""}, {"blank", "a b"}, {"evil", "x\n\x1b[2J\"\\ y\xc2\x9b"}};
  EXPECT_EQ(LogLine(LogFormat::kText, "", LogLevel::kWarning, "some\nevent", fields),
            "warning some\\x0aevent plain=a/b-1 empty=\"\" blank=\"a b\" evil=\"x\\x0a\\x1b[2J\\\"\\\\ y\\x9b\"");
  EXPECT_EQ(LogLine(LogFormat::kText, "now", LogLevel::kInfo, "event", {}), "now info event");
  const LogField turning[] = {{"name", "a\xe2\x80\xae z"}, {"bytes", "\x9b J"}, {"shown", "模型 é"}};
  EXPECT_EQ(LogLine(LogFormat::kText, "", LogLevel::kInfo, "event", turning),
            "info event name=\"a\\u202e z\" bytes=\"\\x9b J\" shown=\"模型 é\"");
}

TEST(LogLineTest, JsonIsValidWhateverTheBytes) {
  const LogField fields[] = {{"evil", "\"\n\xff"}};
  EXPECT_EQ(LogLine(LogFormat::kJson, "now", LogLevel::kError, "event", fields),
            "{\"time\":\"now\",\"level\":\"error\",\"message\":\"event\",\"evil\":\"\\\"\\n\\ufffd\"}");
}

}  // namespace
}  // namespace modelstore
