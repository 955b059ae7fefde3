// Pushes of descriptors that somebody else opened, of files that change meanwhile, and of many at once in little
// memory.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class PushSourceTest : public ModelTest {
 protected:
  // The files of a folder as a client passes them: open, under names that mean nothing to this process.
  static SourceTree Passed(const std::string& folder) {
    std::vector<OpenedFile> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string path = fs::relative(entry.path(), folder).string();
      files.push_back({path, "/nowhere/" + path, open(entry.path().c_str(), O_RDONLY | O_CLOEXEC)});
    }
    Result<SourceTree> tree = SourceTree::FromDescriptors("m", std::move(files), 0);
    EXPECT_OK(tree.status());
    return tree.ok() ? *std::move(tree) : SourceTree();
  }
  // Calls `change` once, when the push has read the header of every file and begins with their content.
  Status PushWhile(const SourceTree& source, const std::function<void()>& change) {
    std::atomic<bool> changed{false};
    JobControl job([&](const JobProgress& progress) {
      if (progress.phase == "storing" && !changed.exchange(true)) change();
    });
    PushOptions options;
    options.name = "m";
    const Status status = Push(catalog(), source, options, job).status();
    EXPECT_TRUE(changed);
    return status;
  }
  void ExpectNothingStored() {
    EXPECT_EQ(ModelNames().size(), 0u);
    EXPECT_EQ(CountKeys(Family::kBlocks), 0u);
    EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  }
};

TEST_F(PushSourceTest, DescriptorsAreReadWithoutTheirNames) {
  const std::string folder = WriteModel("model", SmallModel(1));
  WriteSource("model", "sub/config.json", AsBytes("{}"));
  ASSERT_EQ(chmod((folder + "/sub/config.json").c_str(), 0640), 0);
  const SourceTree source = Passed(folder);
  PushOptions options;
  options.name = source.default_name();
  ASSERT_OK(Push(catalog(), source, options, job_).status());
  ExpectStored("m", folder);
  const Result<ModelRecord> model = catalog().FindModel("m");
  ASSERT_OK(model.status());
  EXPECT_EQ(model->files[1].mode, 0440u);
  EXPECT_EQ(model->files[1].gid, getegid());
}

TEST_F(PushSourceTest, WhatIsNoReadableFileIsRefused) {
  const std::string file = WriteModel("model", SmallModel(1)) + "/model.safetensors";
  const auto pass = [&](const char* path, int flags, uint64_t refused_device = 0) {
    return SourceTree::FromDescriptors("m", {{"f", path, open(path, flags | O_CLOEXEC)}}, refused_device).status();
  };
  EXPECT_OK(pass(file.c_str(), O_RDONLY));
  EXPECT_EQ(pass(file.c_str(), O_RDWR).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass(file.c_str(), O_PATH).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass(temp().c_str(), O_RDONLY | O_DIRECTORY).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass("/dev/zero", O_RDONLY).code(), StatusCode::kInvalidArgument);
  struct stat st;
  ASSERT_EQ(stat(file.c_str(), &st), 0);
  EXPECT_EQ(pass(file.c_str(), O_RDONLY, st.st_dev).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(SourceTree::FromDescriptors("m", {{"f", "closed", -1}}, 0).status().code(), StatusCode::kIo);
}

TEST_F(PushSourceTest, AFileThatIsCutShortMeanwhileIsAnError) {
  for (const bool passed : {false, true}) {
    for (const uint64_t left : {0, 10, 700'000}) {
      const std::string folder = WriteModel("model", SmallModel(1));
      const std::string file = folder + "/model.safetensors";
      Result<SourceTree> scanned = SourceTree::Scan(folder);
      ASSERT_OK(scanned.status());
      const SourceTree source = passed ? Passed(folder) : *std::move(scanned);
      const Status status = PushWhile(source, [&] { ASSERT_EQ(truncate(file.c_str(), static_cast<off_t>(left)), 0); });
      EXPECT_EQ(status.code(), StatusCode::kIo);
      EXPECT_THAT(std::string(status.message()), HasSubstr("changed while it was pushed"));
      EXPECT_THAT(std::string(status.message()), HasSubstr(passed ? "/nowhere/model.safetensors" : file));
      ExpectNothingStored();
    }
  }
}

TEST_F(PushSourceTest, AFileThatGrowsIsRewrittenOrReplacedMeanwhileIsAnError) {
  const std::vector<std::function<void(const std::string&)>> changes = {
      [](const std::string& file) { ASSERT_EQ(truncate(file.c_str(), 10 << 20), 0); },
      [](const std::string& file) {
        const int fd = open(file.c_str(), O_WRONLY | O_CLOEXEC);
        ASSERT_EQ(pwrite(fd, "other", 5, 500'000), 5);
        ASSERT_EQ(close(fd), 0);
      },
      [](const std::string& file) { fs::remove(file); },
      [](const std::string& file) {
        WritePath(file + ".new", AsBytes("another file"));
        fs::rename(file + ".new", file);
      },
  };
  for (const auto& change : changes) {
    const std::string folder = WriteModel("model", SmallModel(1));
    const SourceTree source = Passed(folder);
    const Status status = PushWhile(source, [&] { change(folder + "/model.safetensors"); });
    EXPECT_EQ(status.code(), StatusCode::kIo) << status.ToString();
    EXPECT_THAT(std::string(status.message()), HasSubstr("changed while it was pushed"));
    ExpectNothingStored();
    fs::remove_all(folder);
  }
}

TEST_F(PushSourceTest, ADeletedFileCanBePushedFromItsDescriptor) {
  const std::string folder = WriteModel("model", SmallModel(1));
  const Bytes bytes = ReadPath(folder + "/model.safetensors");
  const int fd = open((folder + "/model.safetensors").c_str(), O_RDONLY | O_CLOEXEC);
  fs::remove(folder + "/model.safetensors");
  Result<SourceTree> source = SourceTree::FromDescriptors("m", {{"model.safetensors", "gone", fd}}, 0);
  ASSERT_OK(source.status());
  PushOptions options;
  options.name = "m";
  ASSERT_OK(Push(catalog(), *source, options, job_).status());
  EXPECT_TRUE(ReadStored("m", "model.safetensors") == bytes);
}

// What reading or hashing throws ends the push, and those who wait for that extent's turn.
TEST_F(PushSourceTest, WhatIsThrownInTheMiddleEndsThePush) {
  const std::string folder = WriteModel("model", SmallModel(1));
  std::atomic<int> calls{0};
  JobControl job([&](const JobProgress& progress) {
    if (progress.phase == "storing" && ++calls == 3) throw std::runtime_error("from a callback");
  });
  const Status status = PushWith(folder, {}, job).status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("from a callback"));
  ExpectNothingStored();
}

TEST_F(PushSourceTest, ManyPushesShareTheSmallestBudget) {
  Close();
  CatalogOptions options;
  options.create_if_missing = true;
  options.memory_budget_bytes = 32 << 20;  // the least: memory for one push at a time
  options.threads = 3;
  Result<std::unique_ptr<Catalog>> catalog = Catalog::Open(store_dir(), options);
  ASSERT_OK(catalog.status());
  // Larger than what may be held, of several dtypes, with deltas that are converted.
  const TestTensor base = RandomTensor("w", {1500, 1000}, 1);
  const std::vector<TestTensor> models[] = {
      {base},
      {Converted(Finetuned(base, 2), DType::kF32)},
      {Finetuned(base, 3), RandomTensor("d", {400, 1000}, 5, DType::kF64)},
      {Finetuned(base, 4)},
  };
  std::vector<std::string> folders;
  for (size_t i = 0; i < std::size(models); ++i) folders.push_back(WriteModel("m" + std::to_string(i), models[i]));
  const auto push = [&](size_t i) {
    const Result<SourceTree> source = SourceTree::Scan(folders[i]);
    ASSERT_OK(source.status());
    PushOptions named;
    named.name = source->default_name();
    JobControl job;
    EXPECT_OK(Push(**catalog, *source, named, job).status());
  };
  push(0);
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::size(models); ++i) threads.emplace_back(push, i);
  for (std::thread& thread : threads) thread.join();
  catalog->reset();
  for (size_t i = 0; i < std::size(models); ++i) ExpectStored("m" + std::to_string(i), folders[i]);
  ExpectClean();
}

TEST_F(PushSourceTest, APushThatWaitsForMemorySaysSoAndCanBeCancelled) {
  const std::string folder = WriteModel("model", SmallModel(1));
  std::vector<MemoryShares::Share> taken;
  JobControl taking;
  for (uint64_t left = catalog().write_budget_bytes() / 4 * 3; left >= MemoryShares::kMinShareBytes;) {
    Result<MemoryShares::Share> share = catalog().push_memory().Take(taking);
    ASSERT_OK(share.status());
    left -= share->bytes();
    taken.push_back(*std::move(share));
  }
  JobControl* waiting = nullptr;
  JobControl job([&](const JobProgress& progress) {
    EXPECT_EQ(progress.phase, "waiting for memory");
    // Meanwhile nothing is kept from rm and prune.
    EXPECT_OK(catalog().collect_gate().EnterAlone(job_).status());
    waiting->Cancel();
  });
  waiting = &job;
  EXPECT_EQ(PushWith(folder, {}, job).status().code(), StatusCode::kCancelled);
  taken.clear();
  MustPush(folder);
  ExpectStored("model", folder);
}

}  // namespace
}  // namespace modelstore
