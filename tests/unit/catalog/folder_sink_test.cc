#include "catalog/write/folder_sink.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <string>

#include "tests/unit/catalog/refused_calls.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHole = 64 << 10;

class FolderSinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = fs::temp_directory_path().string() + "/folder_sink.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }

  // Writes `content` as the file "sub/f", in pieces of `piece` bytes.
  Status Write(const std::string& content, size_t piece = 1 << 20) {
    const std::unique_ptr<ExportSink> sink = NewFolderSink(dir_ + "/out");
    sink->on_warning = [this](const std::string& text) { warnings_ += text + "\n"; };
    ModelFile file;
    file.path = "sub/f";
    file.bytes = content.size();
    file.mode = mode_;
    file.gid = group_;
    file.mtime_ns = 1'500'000'000'000'000'000;
    RETURN_IF_ERROR(sink->Begin({file}));
    RETURN_IF_ERROR(sink->BeginFile(0));
    for (size_t at = 0; at < content.size(); at += piece)
      RETURN_IF_ERROR(sink->Write(AsBytes(std::string_view(content).substr(at, piece))));
    between_();
    return sink->EndFile();
  }
  std::string Read() const {
    std::ifstream file(dir_ + "/out/sub/f", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // The names beside the file.
  size_t Names() const { return static_cast<size_t>(std::distance(fs::directory_iterator(dir_ + "/out/sub"), {})); }

  // Exits with 0 when the file was written where the kernel refuses these calls.
  void WritesWithout(const std::vector<RefusedCall>& refused) {
    fs::remove_all(dir_ + "/out");
    if (!RefuseCalls(refused)) Exit("no filters here");
    const Status written = Write("content");
    if (!written.ok()) Exit(written.ToString());
    if (Read() != "content" || Names() != 1) Exit("it is not there, or not alone");
    Exit("");
  }
  static void Exit(const std::string& complaint) {
    std::cerr << complaint << std::endl;
    std::_Exit(complaint.empty() ? 0 : 1);
  }

  // Of a file written with this mode and group.
  uint32_t ModeOf(uint32_t mode, gid_t group) {
    fs::remove_all(dir_ + "/out");
    warnings_.clear();
    mode_ = mode;
    group_ = group;
    if (const Status written = Write("content"); !written.ok()) return kFailed;
    return stat((dir_ + "/out/sub/f").c_str(), &st_) == 0 ? st_.st_mode & 07777 : kFailed;
  }

  static constexpr uint32_t kFailed = UINT32_MAX;

  std::string dir_, warnings_;
  uint32_t mode_ = 0640;
  gid_t group_ = getegid();
  struct stat st_ {};
  std::function<void()> between_ = [] {};
};

// Calls as NFS, exFAT and FUSE file systems answer them.
constexpr RefusedCall kRenameFlags{SYS_renameat2, EINVAL, 4};
constexpr RefusedCall kNoLinks{SYS_linkat, EPERM};

TEST_F(FolderSinkTest, WritesContentModeAndTime) {
  ASSERT_TRUE(Write("content").ok());
  EXPECT_EQ(Read(), "content");
  struct stat st;
  ASSERT_EQ(stat((dir_ + "/out/sub/f").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0640u);
  EXPECT_EQ(st.st_mtim.tv_sec, 1'500'000'000);
  EXPECT_EQ(warnings_, "");
}

TEST_F(FolderSinkTest, WithoutItsGroupItLetsNobodyElseIn) {
  const auto expect = [&](uint32_t stored, uint32_t exported, bool warns) {
    if (const uint32_t mode = ModeOf(stored, group_); mode != exported)
      Exit(std::to_string(stored) + " became " + std::to_string(mode));
    if (warnings_.empty() == warns) Exit("warned: " + warnings_);
  };
  const auto attempt = [&](gid_t group) {
    group_ = group;
    umask(0);
    if (!RefuseCalls({{SYS_fchown, EPERM}})) Exit("no filters here");
    expect(0440, 0600, true);
    expect(0404, 0600, true);
    expect(0444, 0644, false);
    expect(0555, 0755, false);
    expect(0554, 0744, true);
    expect(0400, 0600, false);
    Exit("");
  };
  EXPECT_EXIT(attempt(getegid() + 1), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(attempt(kUnknownGroup), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, RootGivesEachFileItsGroup) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(ModeOf(0440, 2001), 0640u);
  EXPECT_EQ(st_.st_gid, 2001u);
  EXPECT_EQ(warnings_, "");
}

TEST_F(FolderSinkTest, WhatTheUmaskForbidsIsLeftOut) {
  const auto attempt = [&](mode_t mask, uint32_t expected) {
    umask(mask);
    const uint32_t mode = ModeOf(0555, getegid());
    if (umask(0) != mask) Exit("the umask was changed");
    Exit(mode == expected ? "" : std::to_string(mode));
  };
  EXPECT_EXIT(attempt(0077, 0700), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(attempt(0027, 0750), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(attempt(0, 0755), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, NeedsNoFlagsOfRename) {
  EXPECT_EXIT(WritesWithout({kRenameFlags}), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(WritesWithout({{SYS_renameat2, ENOSYS, 4}}), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, NeedsNoHardLinks) {
  EXPECT_EXIT(WritesWithout({kRenameFlags, kNoLinks}), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(WritesWithout({kRenameFlags, {SYS_linkat, EOPNOTSUPP}}), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, OverwritesNothingWithoutThemEither) {
  between_ = [this] { std::ofstream(dir_ + "/out/sub/f") << "somebody's"; };
  const auto attempt = [&](const std::vector<RefusedCall>& refused) {
    if (!refused.empty() && !RefuseCalls(refused)) Exit("no filters here");
    const Status written = Write("content");
    if (written.code() != StatusCode::kAlreadyExists) Exit(written.ToString());
    if (Read() != "somebody's" || Names() != 1) Exit("it was overwritten, or the temporary file stays");
    Exit("");
  };
  EXPECT_EXIT(attempt({}), ::testing::ExitedWithCode(0), "");
  fs::remove_all(dir_ + "/out");
  EXPECT_EXIT(attempt({kRenameFlags}), ::testing::ExitedWithCode(0), "");
  fs::remove_all(dir_ + "/out");
  EXPECT_EXIT(attempt({kRenameFlags, kNoLinks}), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, SaysOnceWhatTheFileSystemDoesNotKeep) {
  const auto attempt = [&] {
    if (!RefuseCalls({{SYS_fchmod, EPERM}, {SYS_utimensat, EPERM}})) Exit("no filters here");
    const Status written = Write("content");
    if (!written.ok() || Read() != "content") Exit(written.ToString());
    if (warnings_ != "the file system of " + dir_ +
                         "/out lets no mode be set: its options decide who may read what was exported\n"
                         "the file system of " +
                         dir_ + "/out lets no times be set: the files have the time of the export\n")
      Exit(warnings_);
    Exit("");
  };
  EXPECT_EXIT(attempt(), ::testing::ExitedWithCode(0), "");
}

TEST_F(FolderSinkTest, AnotherProcessOfTheSameNumberIsNotInTheWay) {
  fs::create_directories(dir_ + "/out/sub");
  std::ofstream(dir_ + "/out/sub/.modelstore-export-" + std::to_string(getpid())) << "left by one that was killed";
  EXPECT_TRUE(Write("content").ok());
}

TEST_F(FolderSinkTest, FoldersLetInWhoMayReadSomethingBelowThem) {
  const mode_t umask_before = umask(022);
  std::vector<ModelFile> files(3);
  const std::pair<const char*, uint32_t> wanted[] = {{"closed/deep/f", 0400}, {"open/f", 0444}, {"ours/f", 0440}};
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].path = wanted[i].first;
    files[i].mode = wanted[i].second;
    files[i].gid = getgid();
  }
  const std::unique_ptr<ExportSink> sink = NewFolderSink(dir_ + "/out");
  ASSERT_TRUE(sink->Begin(files).ok());
  for (size_t i = 0; i < files.size(); ++i) {
    ASSERT_TRUE(sink->BeginFile(i).ok());
    ASSERT_TRUE(sink->EndFile().ok());
  }
  umask(umask_before);
  const auto mode = [&](const char* folder) {
    struct stat st;
    return stat((dir_ + "/out" + folder).c_str(), &st) == 0 ? st.st_mode & 0777 : 0;
  };
  EXPECT_EQ(mode(""), 0755u);
  EXPECT_EQ(mode("/closed"), 0700u);
  EXPECT_EQ(mode("/closed/deep"), 0700u);
  EXPECT_EQ(mode("/ours"), 0750u);
  EXPECT_EQ(mode("/open"), 0755u);
}

TEST_F(FolderSinkTest, AnExportThatEndsEarlyLeavesNoFileOfItsOwn) {
  std::vector<ModelFile> files(4);
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].path = (i % 2 == 0 ? "sub/f" : "f") + std::to_string(i);
    files[i].mode = 0644;
    files[i].gid = getgid();
  }
  fs::create_directories(dir_ + "/out/sub");
  std::ofstream(dir_ + "/out/sub/before") << "was there";
  {
    const std::unique_ptr<ExportSink> sink = NewFolderSink(dir_ + "/out");
    ASSERT_TRUE(sink->Begin(files).ok());
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_TRUE(sink->BeginFile(i).ok());
      ASSERT_TRUE(sink->Write(AsBytes("content")).ok());
      ASSERT_TRUE(sink->EndFile().ok());
    }
    ASSERT_TRUE(sink->BeginFile(3).ok());
    // Somebody put a file of his own in the place of one that was written.
    fs::remove(dir_ + "/out/f1");
    std::ofstream(dir_ + "/out/f1") << "another";
  }
  std::set<std::string> left;
  for (const auto& entry : fs::recursive_directory_iterator(dir_ + "/out"))
    if (entry.is_regular_file()) left.insert(entry.path().lexically_relative(dir_ + "/out"));
  EXPECT_EQ(left, (std::set<std::string>{"f1", "sub/before"}));
}

TEST_F(FolderSinkTest, ZerosBecomeHolesAndReadAsBefore) {
  std::string content(40 * kHole + 100, '\0');
  content.replace(5 * kHole + 10, 4, "data");
  content.replace(20 * kHole - 2, 4, "over");
  for (const size_t piece : {size_t{1} << 20, kHole, size_t{100'003}, size_t{4096}}) {
    fs::remove_all(dir_ + "/out");
    ASSERT_TRUE(Write(content, piece).ok());
    EXPECT_TRUE(Read() == content) << piece;
    struct stat st;
    ASSERT_EQ(stat((dir_ + "/out/sub/f").c_str(), &st), 0);
    EXPECT_EQ(static_cast<size_t>(st.st_size), content.size());
    if (piece >= kHole && piece % kHole == 0) {
      EXPECT_LE(st.st_blocks * 512, static_cast<blkcnt_t>(5 * kHole)) << piece;
    }
  }
  fs::remove_all(dir_ + "/out");
  const std::string zeros(3 * kHole, '\0');
  ASSERT_TRUE(Write(zeros).ok());
  EXPECT_TRUE(Read() == zeros);
}

}  // namespace
}  // namespace modelstore
