#include "cli/replace_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

const std::string kContentA(100'000, 'a');
const std::string kContentB(3'000'000, 'b');

class ReplaceSourceTest : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) return;
    WriteSource("m", "a.bin", kContentA);
    WriteSource("m", "sub/b.bin", kContentB);
    // The same names and sizes.
    WriteSource("other", "a.bin", std::string(kContentA.size(), 'x'));
    WriteSource("other", "sub/b.bin", std::string(kContentB.size(), 'x'));
    Serve();
    ASSERT_EQ(Ask("push m"), "ok");
    ASSERT_EQ(Ask("push other"), "ok");
    job_.on_warning = [this](const std::string& warning) { warnings_ += warning + "\n"; };
    Scan(SourceDir("m"));
  }

  void Scan(const std::string& path) {
    Result<SourceTree> tree = SourceTree::Scan(path);
    ASSERT_TRUE(tree.ok()) << tree.status().message();
    source_ = std::move(tree).value();
  }
  // How many files were replaced.
  uint64_t Replace(const std::string& model = "m") {
    Result<MountView> mount = MountView::At(mountpoint());
    EXPECT_TRUE(mount.ok()) << mount.status().message();
    const Result<ReplaceReport> report = ReplaceSource(source_, model, *mount, job_);
    EXPECT_TRUE(report.ok()) << report.status().message();
    return report.ok() ? report->files : 0;
  }
  std::string Source(const std::string& path) const { return SourceDir("m") + "/" + path; }
  void ExpectLink(const std::string& path) const {
    ASSERT_TRUE(fs::is_symlink(Source(path))) << path;
    EXPECT_EQ(fs::read_symlink(Source(path)).string(), At("m/" + path));
  }
  void ExpectPlain(const std::string& path, const std::string& content) const {
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(Source(path)))) << path;
    EXPECT_TRUE(ReadAll(Source(path)) == content) << path;
  }
  void ExpectWarning(const std::string& file, const std::string& reason) const {
    EXPECT_NE(warnings_.find(Source(file) + " is left as it is: " + reason), std::string::npos) << warnings_;
  }
  // Nothing is left over, whatever happened.
  void TearDown() override {
    if (!IsSkipped()) {
      for (const auto& entry : fs::recursive_directory_iterator(SourceDir("m")))
        EXPECT_EQ(entry.path().string().find(".modelstore"), std::string::npos) << entry.path();
    }
    MountTest::TearDown();
  }

  SourceTree source_;
  JobControl job_;
  std::string warnings_;
};

TEST_F(ReplaceSourceTest, PutsLinksIntoTheMount) {
  EXPECT_EQ(Replace(), 2u);
  EXPECT_EQ(warnings_, "");
  ExpectLink("a.bin");
  ExpectLink("sub/b.bin");
  EXPECT_TRUE(ReadAll(Source("a.bin")) == kContentA);
  EXPECT_TRUE(ReadAll(Source("sub/b.bin")) == kContentB);
}

TEST_F(ReplaceSourceTest, LeavesAFileThatChanged) {
  std::ofstream(Source("a.bin"), std::ios::in) << "A";  // the same size
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "the mounted file has other content");
  ExpectPlain("a.bin", "A" + kContentA.substr(1));
  ExpectLink("sub/b.bin");
}

TEST_F(ReplaceSourceTest, LeavesAFileWhoseAttributesChanged) {
  fs::permissions(Source("a.bin"), fs::perms::owner_all);
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "it changed since it was stored");
  ExpectPlain("a.bin", kContentA);
}

TEST_F(ReplaceSourceTest, LeavesAFileThatTookThePlaceOfThatOneEvenWithTheSameBytes) {
  std::ofstream(Source("new")) << kContentA;
  fs::rename(Source("new"), Source("a.bin"));
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "it changed since it was stored");
  ExpectPlain("a.bin", kContentA);
}

TEST_F(ReplaceSourceTest, ReplacesNothingThroughAFolderThatBecameALink) {
  fs::rename(Source("sub"), Source("moved"));
  fs::create_directory(Source("elsewhere"));
  fs::copy_file(Source("moved/b.bin"), Source("elsewhere/b.bin"));
  fs::create_directory_symlink("elsewhere", Source("sub"));
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("sub/b.bin", "it changed since it was stored");
  ExpectPlain("elsewhere/b.bin", kContentB);
  ExpectPlain("moved/b.bin", kContentB);
}

TEST_F(ReplaceSourceTest, LeavesAFileThatWasRemoved) {
  fs::remove(Source("a.bin"));
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "");
  EXPECT_FALSE(fs::exists(fs::symlink_status(Source("a.bin"))));
}

TEST_F(ReplaceSourceTest, LeavesAFileWithSeveralNames) {
  fs::create_hard_link(Source("a.bin"), Source("twin"));
  Scan(SourceDir("m"));
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "it has 2 names");
  ExpectPlain("a.bin", kContentA);
  ExpectPlain("twin", kContentA);
}

TEST_F(ReplaceSourceTest, LeavesAFileThatIsOpenForWriting) {
  const int writer = open(Source("a.bin").c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "somebody has it open for writing");
  ExpectPlain("a.bin", kContentA);
  close(writer);
}

TEST_F(ReplaceSourceTest, LeavesAPrivateFileOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away and read those of others";
  constexpr uid_t kAnn = 41001;
  fs::permissions(Source("a.bin"), fs::perms::owner_read | fs::perms::owner_write);
  ASSERT_EQ(chown(Source("a.bin").c_str(), kAnn, kAnn), 0);
  ASSERT_EQ(chown(Source("sub/b.bin").c_str(), kAnn, kAnn), 0);  // everyone may read it
  Scan(SourceDir("m"));
  EXPECT_EQ(Replace(), 1u);
  ExpectWarning("a.bin", "it belongs to the user with id 41001");
  ExpectPlain("a.bin", kContentA);
  ExpectLink("sub/b.bin");
}

// A newer version is renamed into place at every moment from the comparison to after the replacement: whatever came
// first, it has to be what is there in the end.
TEST_F(ReplaceSourceTest, ANewerVersionIsNeverLost) {
  Result<MountView> mount = MountView::At(mountpoint());
  ASSERT_TRUE(mount.ok()) << mount.status().message();
  const std::string newer = SourceDir("other") + "/newer";
  for (int round = 0; round < 100; ++round) {
    fs::remove(Source("a.bin"));
    std::ofstream(Source("a.bin")) << kContentA;
    std::ofstream(newer) << round;
    Scan(Source("a.bin"));
    std::atomic<bool> compared{false};
    std::thread writer([&] {
      while (!compared) {
      }
      for (std::atomic<int> wait = 500 * round; wait > 0; --wait) {
      }
      ASSERT_EQ(rename(newer.c_str(), Source("a.bin").c_str()), 0);
    });
    JobControl job([&](const JobProgress& progress) { compared = progress.done_bytes == kContentA.size(); });
    EXPECT_TRUE(ReplaceSource(source_, "m", *mount, job).ok());
    writer.join();
    ASSERT_TRUE(ReadAll(Source("a.bin")) == std::to_string(round)) << round;
    ASSERT_FALSE(fs::is_symlink(Source("a.bin")));
  }
}

TEST_F(ReplaceSourceTest, ReplacesTheFileAtTheEndOfLinksOnce) {
  fs::create_directory(Source("blobs"));
  fs::create_directory(Source("view"));
  fs::rename(Source("a.bin"), Source("blobs/1"));
  fs::create_symlink("../blobs/1", Source("view/a.bin"));
  fs::create_symlink("../blobs/1", Source("view/same.bin"));
  Scan(Source("view"));
  EXPECT_EQ(Replace(), 1u);
  EXPECT_EQ(fs::read_symlink(Source("view/a.bin")).string(), "../blobs/1");
  EXPECT_EQ(fs::read_symlink(Source("blobs/1")).string(), At("m/a.bin"));
  EXPECT_TRUE(ReadAll(Source("view/same.bin")) == kContentA);
}

TEST_F(ReplaceSourceTest, LeavesAllWhenTheMountShowsOtherContent) {
  EXPECT_EQ(Replace("other"), 0u);
  ExpectWarning("a.bin", "the mounted file has other content");
  ExpectWarning("sub/b.bin", "the mounted file has other content");
  ExpectPlain("a.bin", kContentA);
  ExpectPlain("sub/b.bin", kContentB);
}

TEST_F(ReplaceSourceTest, LeavesAllWhenTheMountDoesNotShowTheModel) {
  EXPECT_EQ(Replace("unheard-of"), 0u);
  ExpectWarning("a.bin", "opening " + At("unheard-of/a.bin"));
  ExpectPlain("a.bin", kContentA);
}

TEST_F(ReplaceSourceTest, LeavesFilesOfTheMount) {
  Scan(At("m"));
  EXPECT_EQ(Replace(), 0u);
  EXPECT_NE(warnings_.find("it is on the mount already"), std::string::npos) << warnings_;
}

TEST(MountView, SaysThatAPlainFolderIsNoMount) {
  const Result<MountView> view = MountView::At("/");
  if (view.ok()) GTEST_SKIP() << "the root folder is a FUSE mount here";
  EXPECT_EQ(view.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(MountView::At("/no/such/folder").status().code(), StatusCode::kUnavailable);
}

TEST_F(ReplaceSourceTest, ACancelledOneLeavesEveryFileWholeOrReplaced) {
  JobControl* stopped = nullptr;
  JobControl job([&](const JobProgress& progress) {
    if (progress.done_bytes >= kContentA.size()) stopped->Cancel();
  });
  stopped = &job;
  Result<MountView> mount = MountView::At(mountpoint());
  ASSERT_TRUE(mount.ok());
  EXPECT_EQ(ReplaceSource(source_, "m", *mount, job).status().code(), StatusCode::kCancelled);
  ExpectLink("a.bin");
  ExpectPlain("sub/b.bin", kContentB);
}

}  // namespace
}  // namespace modelstore
