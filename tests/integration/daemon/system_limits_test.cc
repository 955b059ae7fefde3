// Limits of the system: no more threads, no larger files. What meets one fails with words, and nothing dies of a
// signal.
#include <grp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/integration/daemon/daemon_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

// Nobody's, and not that of another run of these tests at the same time: a limit counts all processes of a user, and
// the system starts no program for one who has too many.
const uid_t kUser = 62'000 + static_cast<uid_t>(getpid()) % 2'500;
constexpr uint64_t kEnoughThreads = 40;

class SystemLimitsTest : public DaemonTest {
 protected:
  void SetUp() override {
    DaemonTest::SetUp();
    if (geteuid() != 0) GTEST_SKIP() << "limits of another user need root";
    ASSERT_EQ(chown(root().c_str(), kUser, kUser), 0);
  }

  // The exit code of `modelstore WORDS` as that user, 128 + n when signal n ended it.
  int RunClient(std::vector<std::string> words, int resource, rlim_t value) const {
    words.insert(words.begin(), MODELSTORE);
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    const std::string said = root() + "/said";
    const pid_t child = fork();
    if (child == 0) {
      const rlimit limit{value, value};
      if (setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) _exit(99);
      if (setgroups(0, nullptr) != 0 || setgid(kUser) != 0 || setuid(kUser) != 0) _exit(99);
      (void)!freopen(said.c_str(), "w", stderr);
      (void)!freopen("/dev/null", "w", stdout);
      execv(pointers[0], pointers.data());
      _exit(99);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::string Said() const { return ReadFile(root() + "/said"); }
};

TEST_F(SystemLimitsTest, TheCommandLineLivesWithAnyNumberOfThreads) {
  const std::string file = WriteFile("a.bin", 1u << 20);
  bool worked = false;
  for (uint64_t threads = 1; threads <= kEnoughThreads; threads += 1 + threads / 8) {
    SCOPED_TRACE(std::to_string(threads) + " threads");
    fs::remove_all(store());
    const int code = RunClient({"--store", store(), "push", file, "--name", "m", "-q"}, RLIMIT_NPROC, threads);
    if (code == 0) {
      worked = true;
      EXPECT_EQ(RunClient({"--store", store(), "verify", "-q"}, RLIMIT_NPROC, threads), 0) << Said();
      continue;
    }
    EXPECT_FALSE(worked) << "fewer were enough";
    EXPECT_EQ(code, 1) << Said();
    EXPECT_NE(Said().find("threads"), std::string::npos) << Said();
  }
  EXPECT_TRUE(worked);
}

TEST_F(SystemLimitsTest, TheDaemonStartsOrSaysThatItLacksThreads) {
  bool started = false;
  for (uint64_t threads = 1; threads <= kEnoughThreads; threads += 1 + threads / 8) {
    SCOPED_TRACE(std::to_string(threads) + " threads");
    if (TryToStartDaemon({.uid = kUser, .max_threads = threads})) {
      started = true;
      Signal(SIGTERM);
      EXPECT_EQ(WaitForDaemon(), 0);
    } else {
      EXPECT_FALSE(started) << "fewer were enough";
      EXPECT_EQ(WaitForDaemon(), 1);
    }
  }
  EXPECT_TRUE(started);
}

TEST_F(SystemLimitsTest, AFileThatMayNotGrowIsAnError) {
  const std::string large = WriteFile("large.bin", 8u << 20), small = WriteFile("small.bin", 1000);
  EXPECT_EQ(RunClient({"--store", store(), "push", large, "--name", "m", "-q"}, RLIMIT_FSIZE, 2u << 20), 1) << Said();
  EXPECT_NE(Said().find("File too large"), std::string::npos) << Said();
  EXPECT_EQ(RunClient({"--store", store(), "push", small, "--name", "m", "-q"}, RLIMIT_FSIZE, 2u << 20), 0) << Said();
  EXPECT_EQ(RunClient({"--store", store(), "verify", "-q"}, RLIMIT_FSIZE, RLIM_INFINITY), 0) << Said();
}

}  // namespace
}  // namespace modelstore
