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
  static constexpr uint32_t kMode = 0777;  // no folder keeps anybody out

  // The files of a folder as a client passes them: open, under names that mean nothing to this process.
  static SourceTree Passed(const std::string& folder) {
    std::vector<OpenedFile> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string path = fs::relative(entry.path(), folder).string();
      files.push_back({path, "/nowhere/" + path, open(entry.path().c_str(), O_RDONLY | O_CLOEXEC), kMode});
    }
    Result<SourceTree> tree = SourceTree::FromDescriptors("m", std::move(files));
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

// What the client says can only narrow what the descriptor itself lets people do.
TEST_F(PushSourceTest, ADescriptorsModeIsNarrowedAndNeverWidened) {
  const std::string file = WriteSource("m", "f", AsBytes("content")) + "/f";
  const auto mode = [&](mode_t own, uint32_t said) {
    EXPECT_EQ(chmod(file.c_str(), own), 0);
    const Result<SourceTree> tree =
        SourceTree::FromDescriptors("m", {{"f", "/f", open(file.c_str(), O_RDONLY | O_CLOEXEC), said}});
    EXPECT_OK(tree.status());
    return tree.ok() ? tree->files()[0].mode : 07777;
  };
  EXPECT_EQ(mode(0644, 0777), 0444u);
  EXPECT_EQ(mode(0644, 0440), 0440u);
  EXPECT_EQ(mode(0640, 0444), 0440u);
  EXPECT_EQ(mode(0755, 0), 0500u) << "the owner's bits are not the client's to take";
  EXPECT_EQ(mode(0600, 0777), 0400u);
}

TEST_F(PushSourceTest, AFolderThatKeepsPeopleOutIsTold) {
  const std::string folder = WriteSource("home/ckpt", "a.bin", AsBytes("a"));
  WriteSource("home/ckpt", "b.sh", AsBytes("b"));
  ASSERT_EQ(chmod((folder + "/b.sh").c_str(), 0755), 0);
  const auto scan = [&] { return SourceTree::Scan(folder); };
  ASSERT_OK(scan().status());
  EXPECT_EQ(scan()->files()[0].mode, 0444u);
  EXPECT_EQ(scan()->files()[1].mode, 0555u);
  EXPECT_TRUE(scan()->notes().empty());

  fs::permissions(fs::path(folder).parent_path(), fs::perms::owner_all);
  ASSERT_OK(scan().status());
  EXPECT_EQ(scan()->files()[0].mode, 0400u);
  EXPECT_EQ(scan()->files()[1].mode, 0500u);
  ASSERT_EQ(scan()->notes().size(), 1u);
  EXPECT_THAT(scan()->notes()[0], HasSubstr("2 of 2 files"));
  EXPECT_EQ(SourceTree::Scan(folder + "/a.bin")->files()[0].mode, 0400u) << "a single file too";
}

TEST_F(PushSourceTest, WhatIsNoReadableFileIsRefused) {
  const std::string file = WriteModel("model", SmallModel(1)) + "/model.safetensors";
  const auto pass = [&](const char* path, int flags) {
    return SourceTree::FromDescriptors("m", {{"f", path, open(path, flags | O_CLOEXEC)}}).status();
  };
  EXPECT_OK(pass(file.c_str(), O_RDONLY));
  EXPECT_EQ(pass(file.c_str(), O_RDWR).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass(file.c_str(), O_PATH).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass(temp().c_str(), O_RDONLY | O_DIRECTORY).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(pass("/dev/zero", O_RDONLY).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(SourceTree::FromDescriptors("m", {{"f", "closed", -1}}).status().code(), StatusCode::kIo);
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

// Backups by hard links, chmod and chown leave the content alone.
TEST_F(PushSourceTest, AFileOfWhichOnlyAttributesChangeIsStored) {
  const std::vector<std::pair<std::function<void(const std::string&)>, uint32_t>> changes = {
      {[](const std::string& file) { ASSERT_EQ(link(file.c_str(), (file + ".backup").c_str()), 0); }, 0444},
      {[](const std::string& file) { ASSERT_EQ(chmod(file.c_str(), 0600), 0); }, 0400},
      {[](const std::string& file) { ASSERT_EQ(chmod(file.c_str(), 0666), 0); }, 0444},
  };
  for (const auto& [change, mode] : changes) {
    const std::string folder = WriteModel("model", SmallModel(1));
    ASSERT_EQ(chmod((folder + "/model.safetensors").c_str(), 0644), 0);
    const SourceTree source = Passed(folder);
    EXPECT_OK(PushWhile(source, [&, &act = change] { act(folder + "/model.safetensors"); }));
    const Result<ModelRecord> model = catalog().FindModel("m");
    ASSERT_OK(model.status());
    EXPECT_EQ(model->files[0].mode, mode) << "what is closed meanwhile stays closed, what is opened is not";
    EXPECT_TRUE(ReadStored("m", "model.safetensors") == ReadPath(folder + "/model.safetensors"));
    ASSERT_OK(Remove(catalog(), "m", false, job_).status());
    fs::remove_all(folder);
  }
}

TEST_F(PushSourceTest, ARewriteThatSetsTheTimeBackIsAnError) {
  const std::string folder = WriteModel("model", SmallModel(1)), file = folder + "/model.safetensors";
  struct stat st;
  ASSERT_EQ(stat(file.c_str(), &st), 0);
  const SourceTree source = Passed(folder);
  std::atomic<bool> changed{false};
  JobControl job([&](const JobProgress& progress) {
    // Extents are hashed in order: the header before anything is done.
    if (progress.phase != "storing" || progress.done_bytes == 0 || changed.exchange(true)) return;
    const int fd = open(file.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(pwrite(fd, " ", 1, 8), 1);
    const timespec times[2] = {st.st_atim, st.st_mtim};
    ASSERT_EQ(futimens(fd, times), 0);
    ASSERT_EQ(close(fd), 0);
  });
  PushOptions options;
  options.name = "m";
  const Status status = Push(catalog(), source, options, job).status();
  EXPECT_TRUE(changed);
  EXPECT_EQ(status.code(), StatusCode::kIo) << status.ToString();
  EXPECT_THAT(std::string(status.message()), HasSubstr("its content was changed"));
  ExpectNothingStored();
}

TEST_F(PushSourceTest, LinksToFoldersAreFollowed) {
  const std::string folder = WriteSource("pipeline", "model_index.json", AsBytes("{}"));
  const std::string vae = WriteSource("elsewhere/vae", "weights.bin", AsBytes("vae"));
  WriteSource("elsewhere/vae", "sub/config.json", AsBytes("{ }"));
  fs::create_directory_symlink("../elsewhere/vae", folder + "/vae");
  fs::create_directory_symlink(vae, folder + "/twice");
  fs::create_directory(folder + "/nothing");
  const auto paths = [&] {
    const Result<SourceTree> tree = SourceTree::Scan(folder);
    EXPECT_OK(tree.status());
    std::vector<std::string> out;
    if (tree.ok())
      for (const SourceFile& file : tree->files()) out.push_back(file.path + " " + std::to_string(file.mode & 0077));
    return out;
  };
  const std::vector<std::string> all = {"model_index.json 36", "twice/sub/config.json 36", "twice/weights.bin 36",
                                        "vae/sub/config.json 36", "vae/weights.bin 36"};
  EXPECT_EQ(paths(), all);
  const Result<SourceTree> tree = SourceTree::Scan(folder);
  ASSERT_OK(tree.status());
  ASSERT_EQ(tree->notes().size(), 2u);
  EXPECT_THAT(tree->notes()[0], HasSubstr("2 links to folders followed"));
  EXPECT_THAT(tree->notes()[1], HasSubstr("1 empty folder not stored, such as " + folder + "/nothing"));
  EXPECT_EQ(MustPush(folder).name, "pipeline");
  EXPECT_TRUE(ReadStored("pipeline", "vae/weights.bin") == ReadPath(vae + "/weights.bin"));

  // The folders that lead to what a link leads to count, as those of the link do.
  fs::permissions(fs::path(vae).parent_path(), fs::perms::owner_all);
  EXPECT_EQ(paths()[0], "model_index.json 36");
  EXPECT_EQ(paths()[4], "vae/weights.bin 0");
}

TEST_F(PushSourceTest, LinksToFoldersNeverLeadInACircle) {
  const std::string folder = WriteSource("above/m", "sub/f", AsBytes("f"));
  for (const char* target : {".", "..", "../..", "/"}) {
    fs::create_directory_symlink(target, folder + "/sub/link");
    const Status status = SourceTree::Scan(folder).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << target;
    EXPECT_THAT(std::string(status.message()), HasSubstr("sub/link is a link to a folder that it lies in")) << target;
    fs::remove(folder + "/sub/link");
  }
  // From folder to folder and back.
  const std::string other = WriteSource("above/other", "g", AsBytes("g"));
  fs::create_directory_symlink(other, folder + "/other");
  fs::create_directory_symlink(folder, other + "/back");
  EXPECT_THAT(std::string(SourceTree::Scan(folder).status().message()), HasSubstr("other/back is a link"));
  fs::remove(other + "/back");
  EXPECT_OK(SourceTree::Scan(folder).status());
}

TEST_F(PushSourceTest, LinksToFoldersThatMultiplyAreRefused) {
  const std::string root = temp() + "/sources/many";
  for (int i = 0; i < 12; ++i) {
    const std::string folder = root + "/" + std::to_string(i);
    fs::create_directories(folder);
    for (const char* name : {"a", "b"})
      fs::create_directory_symlink("../" + std::to_string(i + 1), folder + "/" + name);
  }
  fs::create_directories(root + "/12");
  const Status status = SourceTree::Scan(root + "/0").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("links to folders"));
}

// What a push knows to be a stored file it takes by its record, with what the file is stored against.
TEST_F(PushSourceTest, AStoredFileIsTakenByItsRecord) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  const std::string folder = WriteModel("ft", FinetunedModel(base, 50));
  MustPush(folder);
  const Result<ModelRecord> before = catalog().FindModel("ft");
  ASSERT_OK(before.status());
  ASSERT_NE(before->base, 0u);
  Result<SourceTree> source = SourceTree::OfModel(catalog(), *before);
  ASSERT_OK(source.status());
  PushOptions options;
  options.name = "ft";
  options.update = true;
  const Result<PushReport> report = Push(catalog(), *source, options, job_);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->identical_file_bytes, report->logical_bytes);
  EXPECT_EQ(report->base, "base");
  const Result<ModelRecord> after = catalog().FindModel("ft");
  ASSERT_OK(after.status());
  EXPECT_EQ(after->base, before->base);
  EXPECT_EQ(after->files.size(), before->files.size());
  ExpectStored("ft", folder);
  ExpectClean();
}

TEST_F(PushSourceTest, ADeletedFileCanBePushedFromItsDescriptor) {
  const std::string folder = WriteModel("model", SmallModel(1));
  const Bytes bytes = ReadPath(folder + "/model.safetensors");
  const int fd = open((folder + "/model.safetensors").c_str(), O_RDONLY | O_CLOEXEC);
  fs::remove(folder + "/model.safetensors");
  Result<SourceTree> source = SourceTree::FromDescriptors("m", {{"model.safetensors", "gone", fd}});
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
