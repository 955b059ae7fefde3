// Disk full at every write, and kill -9 at random points, of pushes, removals and prunes: the store opens
// afterwards, every published model decodes, and prune leaves nothing behind.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <random>

#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

constexpr char kCompact[] = "compact";
constexpr char kChildDir[] = "MODELSTORE_FAULT_CHILD_DIR";

class WriteFaultTest : public ModelTest {
 protected:
  void MakeSources() {
    const std::vector<TestTensor> base = SmallModel(1);
    folders_["base"] = WriteModel("base", base);
    folders_["ft"] = WriteModel("ft", FinetunedModel(base, 50));
    WriteSource("ft", "notes.txt", AsBytes("notes"));
  }
  // Every model that is there is whole, and after a prune the store holds exactly what the models need.
  void ExpectGoodStore() {
    for (const std::string& name : ModelNames()) {
      if (name != kCompact) ExpectStored(name, folders_.at(name));  // what that is, only verify knows
    }
    ExpectClean();
    ASSERT_OK(Prune(catalog(), false, job_).status());
    ExpectClean();
    const Result<StoreReport> report = MakeReport(catalog());
    ASSERT_OK(report.status());
    EXPECT_EQ(report->prunable_bytes, 0u);
    uint64_t kept = 0;
    for (const Family family :
         {Family::kModels, Family::kFiles, Family::kTensors, Family::kBlocks, Family::kEdges, Family::kSketches}) {
      EXPECT_OK(catalog().store().Scan(family, "", [&](std::string_view key, ByteSpan value) {
        kept += key.size() + value.size();
        return OkStatus();
      }));
    }
    EXPECT_EQ(kept, report->stored_bytes);
  }
  // A finetune as a compact model.
  static PushOptions Compact() {
    PushOptions options;
    options.name = kCompact;
    CompactChoice& choice = options.compact.emplace().choice.emplace();
    choice.rank = 2;
    choice.residual_step = 2;
    return options;
  }
  bool Has(const std::string& name) {
    const std::vector<std::string> names = ModelNames();
    return std::find(names.begin(), names.end(), name) != names.end();
  }

  std::map<std::string, std::string> folders_;
};

// A disk that is full from the `limit`th write after Arm() on.
struct FullDisk {
  std::atomic<int64_t> left{INT64_MAX};
  std::atomic<int64_t> writes{0};
  std::function<Status(uint64_t)> hook() {
    return [this](uint64_t) {
      ++writes;
      return --left < 0 ? NoSpace("test: the disk is full") : OkStatus();
    };
  }
};

// Runs `act` with the disk full from its 1st, 2nd, 4th, … write on and checks the store each time; until it succeeds.
class FullDiskTest : public WriteFaultTest {
 protected:
  void Sweep(const std::function<void()>& prepare, const std::function<Status()>& act) {
    MakeSources();
    for (int64_t limit = 0;; limit += 1 + limit / 3) {
      SCOPED_TRACE("full from write " + std::to_string(limit) + " on");
      prepare();
      FullDisk disk;
      Reopen(disk.hook());
      disk.left = limit;
      const Status status = act();
      disk.left = INT64_MAX;
      Reopen();
      ExpectGoodStore();
      if (HasFailure()) return;
      if (status.ok()) {
        EXPECT_GT(limit, 0) << "no write failed: the hook is not called";
        return;
      }
      EXPECT_EQ(status.code(), StatusCode::kNoSpace) << status.ToString();
    }
  }
};

TEST_F(FullDiskTest, Push) {
  Sweep(
      [&] {
        Reopen();
        if (!Has("base")) MustPush(folders_.at("base"));
        if (Has("ft")) {
          ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
        }
        ASSERT_OK(Prune(catalog(), false, job_).status());
      },
      [&] {
        const Status status = PushPath(folders_.at("ft")).status();
        EXPECT_EQ(Has("ft"), status.ok());
        return status;
      });
}

TEST_F(FullDiskTest, CompactPush) {
  Sweep(
      [&] {
        Reopen();
        if (!Has("base")) MustPush(folders_.at("base"));
        if (Has(kCompact)) {
          ASSERT_OK(Remove(catalog(), kCompact, false, job_).status());
        }
        ASSERT_OK(Prune(catalog(), false, job_).status());
      },
      [&] {
        const Status status = PushPath(folders_.at("ft"), Compact()).status();
        EXPECT_EQ(Has(kCompact), status.ok());
        return status;
      });
}

TEST_F(FullDiskTest, RemoveAndPrune) {
  Sweep(
      [&] {
        Reopen();
        if (!Has("base")) MustPush(folders_.at("base"));
        if (!Has("ft")) MustPush(folders_.at("ft"));
      },
      [&] {
        RETURN_IF_ERROR(Remove(catalog(), "ft", false, job_).status());
        return Prune(catalog(), false, job_).status();
      });
}

class KillTest : public WriteFaultTest {};

// The child of KilledAtRandomPoints: pushes, removes and prunes until it is killed.
TEST_F(KillTest, DISABLED_Child) {
  const char* dir = std::getenv(kChildDir);
  ASSERT_NE(dir, nullptr);
  const std::string root = dir;
  CatalogOptions options;
  options.create_if_missing = true;
  options.memory_budget_bytes = 128 << 20;
  Result<std::unique_ptr<Catalog>> catalog = Catalog::Open(root + "/store", options);
  ASSERT_OK(catalog.status());
  ASSERT_EQ(write(STDOUT_FILENO, "!", 1), 1);
  while (true) {
    for (const char* name : {"base", "ft"}) {
      Result<SourceTree> source = SourceTree::Scan(root + "/sources/" + name);
      ASSERT_OK(source.status());
      PushOptions push;
      push.name = name;
      const Status status = Push(**catalog, *source, push, job_).status();
      ASSERT_TRUE(status.ok() || status.code() == StatusCode::kAlreadyExists) << status.ToString();
    }
    Result<SourceTree> source = SourceTree::Scan(root + "/sources/ft");
    ASSERT_OK(source.status());
    const Status status = Push(**catalog, *source, Compact(), job_).status();
    ASSERT_TRUE(status.ok() || status.code() == StatusCode::kAlreadyExists) << status.ToString();
    ASSERT_OK(Remove(**catalog, kCompact, false, job_).status());
    ASSERT_OK(Remove(**catalog, "ft", false, job_).status());
    ASSERT_OK(Remove(**catalog, "base", false, job_).status());
    ASSERT_OK(Prune(**catalog, false, job_).status());
  }
}

TEST_F(KillTest, KilledAtRandomPoints) {
  MakeSources();
  std::mt19937 random(7);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Close();
    int out[2];
    ASSERT_EQ(pipe(out), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      setenv(kChildDir, temp().c_str(), 1);
      dup2(out[1], STDOUT_FILENO);
      execl("/proc/self/exe", "fault_write", "--gtest_filter=KillTest.DISABLED_Child", "--gtest_brief=1",
            "--gtest_also_run_disabled_tests", static_cast<char*>(nullptr));
      _exit(127);
    }
    close(out[1]);
    // Waits until the child has the store open; its exclamation mark may come after lines of the test framework.
    char c = 0;
    ssize_t n = 0;
    while ((n = read(out[0], &c, 1)) == 1 && c != '!') {
    }
    EXPECT_EQ(n, 1) << "the child ended early";
    usleep(std::uniform_int_distribution<useconds_t>(0, 1'200'000)(random));
    EXPECT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    close(out[0]);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the child failed by itself";
    Reopen();
    ExpectGoodStore();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace modelstore
