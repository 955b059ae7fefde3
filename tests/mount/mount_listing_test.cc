// Listings of the mount and times of its folders, listed before something changes and again right after it: by a path,
// by who holds the folder open or stands in it, and through other file systems on top.

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The names that readdir gives, sorted, without . and ..
std::vector<std::string> NamesIn(DIR* folder) {
  std::multiset<std::string> names;
  while (const dirent* entry = ::readdir(folder))
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) names.insert(entry->d_name);
  return {names.begin(), names.end()};
}

std::vector<std::string> List(const std::string& path) {
  DIR* folder = ::opendir(path.c_str());
  if (folder == nullptr) return {"errno " + std::to_string(errno)};
  std::vector<std::string> names = NamesIn(folder);
  ::closedir(folder);
  return names;
}

// As `ls -l`: every name is looked up too.
std::vector<std::string> ListLong(const std::string& path) {
  std::vector<std::string> names = List(path);
  for (std::string& name : names) {
    struct stat st;
    if (::stat((path + "/" + name).c_str(), &st) != 0) name += ": errno " + std::to_string(errno);
  }
  return names;
}

int64_t ModifiedNs(const std::string& path) {
  struct stat st {};
  EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
  return st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec;
}

// What memory pressure does to names and nodes that nobody uses. False when this process may not.
bool DropDentries() {
  std::ofstream file("/proc/sys/vm/drop_caches");
  file << "2" << std::flush;
  return file.good();
}

class MountListingTest : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) return;
    for (const char* model : {"first", "second", "org/one", "org/two", "org/deep/three"})
      WriteSource(model, "f", model);
  }
};

TEST_F(MountListingTest, AModelIsInTheNextListingOfAFolderThatWasListedBefore) {
  Serve();
  EXPECT_THAT(List(mountpoint()), IsEmpty());
  ASSERT_EQ(Ask("push first"), "ok");
  EXPECT_THAT(ListLong(mountpoint()), ElementsAre("first"));
  ASSERT_EQ(Ask("push second"), "ok");
  EXPECT_THAT(List(mountpoint()), ElementsAre("first", "second"));
  ASSERT_EQ(Ask("push org/one"), "ok");
  EXPECT_THAT(ListLong(mountpoint()), ElementsAre("first", "org", "second"));
  EXPECT_THAT(List(At("org")), ElementsAre("one"));
  ASSERT_EQ(Ask("push org/two"), "ok");
  EXPECT_THAT(List(At("org")), ElementsAre("one", "two"));
  ASSERT_EQ(Ask("push org/deep/three"), "ok");
  EXPECT_THAT(ListLong(At("org")), ElementsAre("deep", "one", "two"));
  ASSERT_EQ(Ask("rename org/two two"), "ok");
  EXPECT_THAT(List(At("org")), ElementsAre("deep", "one"));
  EXPECT_THAT(ListLong(mountpoint()), ElementsAre("first", "org", "second", "two"));
  ASSERT_EQ(Ask("rm org/one"), "ok");
  EXPECT_THAT(ListLong(At("org")), ElementsAre("deep"));
  ASSERT_EQ(Ask("rm org/deep/three"), "ok");
  EXPECT_THAT(ListLong(mountpoint()), ElementsAre("first", "second", "two"));
}

TEST_F(MountListingTest, FilesThatAnUpdateBringsOrTakesAreInTheNextListing) {
  WriteSource("m", "a.safetensors", "a");
  WriteSource("m", "sub/x", "x");
  Serve();
  ASSERT_EQ(Ask("push m"), "ok");
  EXPECT_THAT(ListLong(At("m")), ElementsAre("a.safetensors", "sub"));
  EXPECT_THAT(ListLong(At("m/sub")), ElementsAre("x"));
  WriteSource("m", "b.safetensors", "b");
  WriteSource("m", "sub/y", "y");
  ASSERT_EQ(Ask("update m"), "ok");
  EXPECT_THAT(List(At("m")), ElementsAre("a.safetensors", "b.safetensors", "sub"));
  EXPECT_THAT(List(At("m/sub")), ElementsAre("x", "y"));
  fs::remove(SourceDir("m") + "/a.safetensors");
  fs::remove_all(SourceDir("m") + "/sub");
  ASSERT_EQ(Ask("update m"), "ok");
  EXPECT_THAT(ListLong(At("m")), ElementsAre("b.safetensors"));
}

TEST_F(MountListingTest, WhoHoldsAFolderOpenOrStandsInItSeesWhatIsNewThere) {
  Serve();
  ASSERT_EQ(Ask("push org/one"), "ok");
  DIR* open = ::opendir(At("org").c_str());
  ASSERT_NE(open, nullptr);
  EXPECT_THAT(NamesIn(open), ElementsAre("one"));
  const int before = ::open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(::chdir(At("org").c_str()), 0);
  EXPECT_THAT(List("."), ElementsAre("one"));
  ASSERT_EQ(Ask("push org/two"), "ok");
  EXPECT_THAT(ListLong("."), ElementsAre("one", "two"));
  ::rewinddir(open);
  EXPECT_THAT(NamesIn(open), ElementsAre("one", "two"));
  ASSERT_EQ(Ask("rm org/one"), "ok");
  EXPECT_THAT(ListLong("."), ElementsAre("two"));
  ::rewinddir(open);
  EXPECT_THAT(NamesIn(open), ElementsAre("two"));
  // The folder itself vanishes: it is empty for who is still there.
  ASSERT_EQ(Ask("rm org/two"), "ok");
  EXPECT_THAT(List("."), IsEmpty());
  ::rewinddir(open);
  EXPECT_THAT(NamesIn(open), IsEmpty());
  ::closedir(open);
  EXPECT_EQ(::fchdir(before), 0);
  ::close(before);
}

TEST_F(MountListingTest, WhatTheKernelHasDroppedIsNotListedWhenItIsGone) {
  Serve();
  for (const char* model : {"first", "second", "org/one", "org/two"})
    ASSERT_EQ(Ask("push " + std::string(model)), "ok");
  EXPECT_THAT(List(mountpoint()), ElementsAre("first", "org", "second"));
  EXPECT_THAT(List(At("org")), ElementsAre("one", "two"));
  if (!DropDentries()) GTEST_SKIP() << "only root can make the kernel forget names";
  ASSERT_EQ(Ask("rm second"), "ok");
  ASSERT_EQ(Ask("rm org/two"), "ok");
  EXPECT_THAT(ListLong(mountpoint()), ElementsAre("first", "org"));
  EXPECT_THAT(ListLong(At("org")), ElementsAre("one"));
}

TEST_F(MountListingTest, FileSystemsOnTopShowWhatIsNew) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can mount";
  Serve();
  ASSERT_EQ(Ask("push org/one"), "ok");
  const std::string bound = ScratchFolder("bound"), overlaid = ScratchFolder("overlaid");
  ASSERT_EQ(::mount(mountpoint().c_str(), bound.c_str(), nullptr, MS_BIND, nullptr), 0) << std::strerror(errno);
  const std::string options = "lowerdir=" + mountpoint() + ":" + ScratchFolder("empty");
  const bool has_overlay = ::mount("overlay", overlaid.c_str(), "overlay", MS_RDONLY, options.c_str()) == 0;
  std::vector<std::string> places = {mountpoint(), bound};
  if (has_overlay) places.push_back(overlaid);
  for (const std::string& place : places) {
    EXPECT_THAT(ListLong(place), ElementsAre("org")) << place;
    EXPECT_THAT(ListLong(place + "/org"), ElementsAre("one")) << place;
  }
  ASSERT_EQ(Ask("push first"), "ok");
  ASSERT_EQ(Ask("push org/two"), "ok");
  for (const std::string& place : places) {
    EXPECT_THAT(ListLong(place), ElementsAre("first", "org")) << place;
    EXPECT_THAT(ListLong(place + "/org"), ElementsAre("one", "two")) << place;
    EXPECT_EQ(ReadAll(place + "/org/two/f"), "org/two") << place;
  }
  ASSERT_EQ(Ask("rm org/one"), "ok");
  for (const std::string& place : places) EXPECT_THAT(ListLong(place + "/org"), ElementsAre("two")) << place;
}

TEST_F(MountListingTest, TimesOfFoldersMoveWithWhatIsInThem) {
  Serve();
  const int64_t empty = ModifiedNs(mountpoint());
  ASSERT_EQ(Ask("push org/one"), "ok");
  const int64_t one = ModifiedNs(mountpoint()), org = ModifiedNs(At("org")), model = ModifiedNs(At("org/one"));
  EXPECT_GT(one, empty);
  EXPECT_GT(org, 0);
  ASSERT_EQ(Ask("push org/two"), "ok");
  EXPECT_GT(ModifiedNs(mountpoint()), one);
  EXPECT_GT(ModifiedNs(At("org")), org);
  EXPECT_EQ(ModifiedNs(At("org/one")), model);
  const int64_t two = ModifiedNs(At("org"));
  WriteSource("org/one", "g", "another file");
  ASSERT_EQ(Ask("update org/one"), "ok");
  EXPECT_GT(ModifiedNs(At("org/one")), model);
  EXPECT_GT(ModifiedNs(At("org")), two);
  const int64_t updated = ModifiedNs(At("org"));
  ASSERT_EQ(Ask("rm org/one"), "ok");
  EXPECT_GT(ModifiedNs(mountpoint()), updated);
  EXPECT_GT(ModifiedNs(At("org")), updated);
  const int64_t removed = ModifiedNs(At("org"));
  ASSERT_EQ(Ask("rename org/two org/deep/two"), "ok");
  EXPECT_GT(ModifiedNs(mountpoint()), removed);
  EXPECT_GT(ModifiedNs(At("org")), removed);
  EXPECT_GT(ModifiedNs(At("org/deep")), removed);
  const int64_t renamed = ModifiedNs(mountpoint());
  ASSERT_EQ(Ask("rm org/deep/two"), "ok");  // the last one
  EXPECT_GT(ModifiedNs(mountpoint()), renamed);
}

// Of everything on the mount what backups compare.
std::map<std::string, std::string> Identities(const std::string& mountpoint) {
  std::map<std::string, std::string> identities;
  const auto add = [&](const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
    std::ostringstream text;
    text << st.st_ino << ' ' << st.st_size << ' ' << st.st_mtim.tv_sec << '.' << st.st_mtim.tv_nsec << ' '
         << st.st_ctim.tv_sec << '.' << st.st_ctim.tv_nsec;
    identities[path.substr(mountpoint.size())] = text.str();
  };
  add(mountpoint);
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(mountpoint)) add(entry.path());
  return identities;
}

TEST_F(MountListingTest, ARestartChangesNothingThatBackupsCompare) {
  Serve();
  for (const char* model : {"first", "org/one", "org/two", "second"})
    ASSERT_EQ(Ask("push " + std::string(model)), "ok");
  ASSERT_EQ(Ask("rm org/two"), "ok");
  ASSERT_EQ(Ask("rm second"), "ok");
  const auto before = Identities(mountpoint());
  ASSERT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  Serve();
  EXPECT_EQ(Identities(mountpoint()), before);
}

TEST_F(MountListingTest, AnUpdateWithTheSameSizeAndTimesLooksDifferentAlsoAfterARestart) {
  WriteSource("m", "kept", "kept");
  WriteSource("m", "w.bin", "aaaa");
  Serve();
  ASSERT_EQ(Ask("push m"), "ok");
  struct stat first {
  }, second{}, third{};
  ASSERT_EQ(::stat(At("m/w.bin").c_str(), &first), 0);
  WriteSource("m", "w.bin", "bbbb");
  ASSERT_EQ(Ask("update m"), "ok");
  ASSERT_EQ(::stat(At("m/w.bin").c_str(), &second), 0);
  WriteSource("m", "w.bin", "cccc");
  ASSERT_EQ(Ask("update m"), "ok");
  ASSERT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  Serve();
  ASSERT_EQ(::stat(At("m/w.bin").c_str(), &third), 0);
  const auto changed_ns = [](const struct stat& st) { return st.st_ctim.tv_sec * 1'000'000'000 + st.st_ctim.tv_nsec; };
  for (const auto& [before, after] : {std::pair(first, second), std::pair(second, third)}) {
    EXPECT_NE(before.st_ino, after.st_ino);
    EXPECT_LT(changed_ns(before), changed_ns(after));
    EXPECT_EQ(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    EXPECT_EQ(before.st_size, after.st_size);
  }
}

}  // namespace
}  // namespace modelstore
