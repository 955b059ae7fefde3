// The daemon killed at any moment, and a store that it cannot write to.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/integration/daemon/daemon_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class DaemonFaultTest : public DaemonTest {};

TEST_F(DaemonFaultTest, KilledDuringPushesAndReadsAndStartedAgain) {
  StartDaemon();
  const std::string kept = WriteFile("kept.bin", 4u << 20);
  ASSERT_EQ(Push("kept", kept).Code(), "");
  const int big = open(WriteFile("big.bin", 32u << 20, 7).c_str(), O_RDONLY | O_CLOEXEC);
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    std::atomic<bool> stop{false};
    // A reader sees the right bytes or an error, never other bytes.
    std::atomic<int> wrong{0};
    std::thread reader([&] {
      const std::string right = ReadFile(kept);
      while (can_mount() && !stop) {
        const std::string bytes = ReadFile(mountpoint() + "/kept/kept.bin");
        if (bytes != right.substr(0, bytes.size())) ++wrong;
      }
    });
    {
      const RawClient first(socket()), second(socket());
      first.SendPush("a", {{"big.bin", big}});
      second.SendPush("b", {{"big.bin", big}});
      first.AwaitStoring();
      Signal(SIGKILL);
      EXPECT_EQ(WaitForDaemon(), 128 + SIGKILL);
      EXPECT_TRUE(first.Answer().Has("closed"));
    }
    stop = true;
    reader.join();
    EXPECT_EQ(wrong, 0);
    // Over the mount and the socket that the killed one left.
    StartDaemon();
    if (HasFatalFailure()) break;
    EXPECT_EQ(ModelNames(), std::vector<std::string>{"kept"});
    if (can_mount()) {
      EXPECT_TRUE(ReadFile(mountpoint() + "/kept/kept.bin") == ReadFile(kept));
    }
    EXPECT_EQ(Call("verify").At("/result/failed"), "[]");
    EXPECT_EQ(Call("prune").Code(), "");
    ExpectWhole({"kept"});
  }
  close(big);
}

TEST_F(DaemonFaultTest, AStoreThatCannotBeWrittenToIsStillRead) {
  constexpr uid_t kNobody = 54321;
  StartDaemon();
  const std::string file = WriteFile("a.bin", 100'000);
  ASSERT_EQ(chmod(file.c_str(), 0644), 0);
  ASSERT_EQ(Push("m", file).Code(), "");
  Signal(SIGTERM);
  ASSERT_EQ(WaitForDaemon(), 0);
  // As root, who may write everywhere, the daemon runs as somebody else.
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(store()))
    ASSERT_EQ(chmod(entry.path().c_str(), entry.is_directory() ? 0555 : 0444), 0);
  ASSERT_EQ(chmod(store().c_str(), 0555), 0);
  ASSERT_EQ(chmod((root() + "/run").c_str(), 0777), 0);
  StartDaemon({.uid = geteuid() == 0 ? kNobody : 0});
  EXPECT_EQ(ModelNames(), std::vector<std::string>{"m"});
  EXPECT_EQ(Call("verify").At("/result/failed"), "[]");
  for (const Reply& answer : {Push("n", file), Call("rm", R"({"name": "m"})"), Call("prune")}) {
    EXPECT_EQ(answer.Code(), "permission_denied") << answer;
    EXPECT_NE(answer.Message().find("only read its store"), std::string::npos) << answer;
  }
  ASSERT_EQ(chmod(store().c_str(), 0755), 0);
}

}  // namespace
}  // namespace modelstore
