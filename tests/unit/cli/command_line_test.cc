#include "cli/command_line.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include "cli/commands.h"

namespace modelstore {
namespace {

class CommandLine : public testing::Test {
 protected:
  void SetUp() override { ClearEnvironment(); }
  void TearDown() override { ClearEnvironment(); }
  static void ClearEnvironment() {
    unsetenv("MODELSTORE_STORE");
    unsetenv("MODELSTORE_SOCKET");
    unsetenv("MODELSTORE_TIMEOUT");
  }

  static Invocation Parsed(const std::vector<std::string>& words) {
    Result<Invocation> parsed = ParseCommandLine(words);
    EXPECT_TRUE(parsed.ok()) << parsed.status().message();
    return parsed.ok() ? *parsed : Invocation{};
  }
  static void ExpectUsageError(const std::vector<std::string>& words, const std::string& part) {
    const Result<Invocation> parsed = ParseCommandLine(words);
    ASSERT_FALSE(parsed.ok()) << part;
    EXPECT_EQ(StatusCodeExit(parsed.status().code()), 2);
    EXPECT_NE(parsed.status().message().find(part), std::string::npos) << parsed.status().message();
  }
};

TEST_F(CommandLine, GlobalOptionsStandBeforeOrAfterTheCommand) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"--store", "s", "--json", "-q", "--no-color", "show", "m"},
        std::vector<std::string>{"show", "m", "--store", "s", "--json", "-q", "--no-color"},
        std::vector<std::string>{"--json", "show", "--store=s", "--quiet", "m", "--no-color"}}) {
    const Invocation parsed = Parsed(words);
    ASSERT_NE(parsed.command, nullptr);
    EXPECT_EQ(parsed.command->name, "show");
    EXPECT_EQ(parsed.arguments.positionals, std::vector<std::string>{"m"});
    EXPECT_EQ(parsed.global.store, "s");
    EXPECT_TRUE(parsed.global.json);
    EXPECT_TRUE(parsed.global.quiet);
    EXPECT_TRUE(parsed.global.no_color);
  }
}

TEST_F(CommandLine, TheFlagWinsOverTheEnvironment) {
  setenv("MODELSTORE_STORE", "from-environment", 1);
  EXPECT_EQ(Parsed({"ls"}).global.store, "from-environment");
  EXPECT_EQ(Parsed({"ls", "--store", "flag"}).global.store, "flag");
  unsetenv("MODELSTORE_STORE");
  EXPECT_EQ(Parsed({"ls"}).global.store, "");
}

TEST_F(CommandLine, ATildeThatNoShellExpandedIsTheHomeFolder) {
  const char* const home = getenv("HOME");
  const std::string before = home == nullptr ? "" : home;
  setenv("HOME", "/home/ann", 1);
  EXPECT_EQ(Parsed({"ls", "--store=~/st"}).global.store, "/home/ann/st");
  EXPECT_EQ(Parsed({"ls", "--socket=~/x"}).global.socket, "/home/ann/x");
  setenv("MODELSTORE_STORE", "~/st", 1);
  EXPECT_EQ(Parsed({"ls"}).global.store, "/home/ann/st");
  ExpectUsageError({"ls", "--store=~bob/st"}, "~bob/st");
  unsetenv("HOME");
  ExpectUsageError({"ls", "--store=~/st"}, "HOME");
  if (home != nullptr) setenv("HOME", before.c_str(), 1);
}

TEST_F(CommandLine, HowLongTheDaemonMaySayNothing) {
  EXPECT_EQ(Parsed({"status"}).global.timeout_seconds, std::nullopt);
  EXPECT_EQ(Parsed({"status", "--timeout", "3"}).global.timeout_seconds, 3u);
  setenv("MODELSTORE_TIMEOUT", "0", 1);
  EXPECT_EQ(Parsed({"status"}).global.timeout_seconds, 0u);
  EXPECT_EQ(Parsed({"--timeout=7", "status"}).global.timeout_seconds, 7u);
  ExpectUsageError({"status", "--timeout=soon"}, "--timeout");
  setenv("MODELSTORE_TIMEOUT", "soon", 1);
  ExpectUsageError({"status"}, "MODELSTORE_TIMEOUT");
}

TEST_F(CommandLine, FlagsWinOverTheEnvironmentAndAStoreOverASocket) {
  const auto door = [](const std::vector<std::string>& words) {
    const Invocation parsed = Parsed(words);
    return "store=" + parsed.global.store + " socket=" + parsed.global.socket;
  };
  EXPECT_EQ(door({"ls"}), "store= socket=");
  EXPECT_EQ(door({"ls", "--socket", "s"}), "store= socket=s");
  EXPECT_EQ(door({"--store", "d", "ls", "--socket", "s"}), "store=d socket=");
  setenv("MODELSTORE_SOCKET", "es", 1);
  EXPECT_EQ(door({"ls"}), "store= socket=es");
  EXPECT_EQ(door({"ls", "--socket", "s"}), "store= socket=s");
  EXPECT_EQ(door({"ls", "--store", "d"}), "store=d socket=");
  setenv("MODELSTORE_STORE", "ed", 1);
  EXPECT_EQ(door({"ls"}), "store=ed socket=");
  EXPECT_EQ(door({"--socket", "s", "ls"}), "store= socket=s");
  setenv("MODELSTORE_STORE", "", 1);
  EXPECT_EQ(door({"ls"}), "store= socket=es");
}

TEST_F(CommandLine, ModelsMayBeCalledLikeCommands) {
  const Invocation parsed = Parsed({"rename", "ls", "push"});
  ASSERT_NE(parsed.command, nullptr);
  EXPECT_EQ(parsed.command->name, "rename");
  EXPECT_EQ(parsed.arguments.positionals, (std::vector<std::string>{"ls", "push"}));
}

TEST_F(CommandLine, CollectsOptionsAndFlags) {
  const Invocation push = Parsed({"push", "--name", "n", "path", "--base", "none"});
  EXPECT_EQ(push.arguments.Value("--name"), "n");
  EXPECT_EQ(push.arguments.Value("--base", "auto"), "none");
  EXPECT_EQ(push.arguments.Value("--fidelity", "exact"), "exact");
  EXPECT_EQ(push.arguments.positionals, std::vector<std::string>{"path"});
  const Invocation rm = Parsed({"rm", "m", "--yes"});
  EXPECT_TRUE(rm.arguments.Has("--yes"));
  EXPECT_FALSE(rm.arguments.Has("--dry-run"));
}

TEST_F(CommandLine, VerifyTakesAnyNumberOfNames) {
  EXPECT_TRUE(Parsed({"verify"}).arguments.positionals.empty());
  EXPECT_EQ(Parsed({"verify", "a", "b"}).arguments.positionals, (std::vector<std::string>{"a", "b"}));
}

TEST_F(CommandLine, RefusesWhatItDoesNotKnow) {
  ExpectUsageError({}, "no command");
  ExpectUsageError({"frobnicate"}, "frobnicate");
  ExpectUsageError({"push", "p", "--replace"}, "--replace");
  ExpectUsageError({"push"}, "PATH");
  ExpectUsageError({"push", "a", "b"}, "b");
  ExpectUsageError({"push", "p", "--name"}, "--name");
  ExpectUsageError({"export", "only-a-name"}, "DIR");
  ExpectUsageError({"ls", "extra"}, "extra");
  ExpectUsageError({"show", "m", "--tree"}, "modelstore show --help");
}

TEST_F(CommandLine, HelpAndVersionAreText) {
  const Invocation help = Parsed({"--help"});
  EXPECT_EQ(help.command, nullptr);
  for (const CommandSpec& command : Commands()) EXPECT_NE(help.text.find(command.name), std::string::npos);
  EXPECT_NE(Parsed({"push", "--help"}).text.find("--base"), std::string::npos);
  EXPECT_EQ(Parsed({"--version"}).text.rfind("modelstore ", 0), 0u);
  EXPECT_EQ(Parsed({"ls", "--version"}).command, nullptr);
  EXPECT_NE(Parsed({"--version", "--json"}).text.find("\"version\""), std::string::npos);
}

}  // namespace
}  // namespace modelstore
