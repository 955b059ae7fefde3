#include "codec/support/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "codec/support/unique_fd.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = fs::temp_directory_path().string() + "/files.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    folder_ = UniqueFd(open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  void TearDown() override { fs::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) const { std::ofstream(dir_ + "/" + name) << text; }
  std::string Read(const std::string& name) const {
    std::ifstream file(dir_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string dir_;
  UniqueFd folder_;
};

TEST_F(Files, GivesANameThatIsFree) {
  Write("t", "new");
  EXPECT_TRUE(GiveName(folder_.get(), "t", "n", "n").ok());
  EXPECT_EQ(Read("n"), "new");
  EXPECT_FALSE(fs::exists(dir_ + "/t"));
}

TEST_F(Files, TakesNoNameThatIsTaken) {
  Write("t", "new");
  Write("n", "old");
  const Status given = GiveName(folder_.get(), "t", "n", "shown/n");
  EXPECT_EQ(given.code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(given.message(), "shown/n exists and is not overwritten");
  EXPECT_EQ(Read("n"), "old");
  EXPECT_EQ(Read("t"), "new");
}

TEST_F(Files, RandomNamesDiffer) {
  const Result<std::string> a = RandomName(".p-"), b = RandomName(".p-");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(*a, *b);
  EXPECT_EQ(a->size(), 3u + 16u);
  EXPECT_TRUE(a->starts_with(".p-"));
}

TEST(ExpandHome, IsWhatAShellDoes) {
  EXPECT_EQ(*ExpandHome("~", "/home/ann"), "/home/ann");
  EXPECT_EQ(*ExpandHome("~/a/b", "/home/ann"), "/home/ann/a/b");
  for (const char* same : {"", "/~", "a/~", "./~", "relative", "/x"}) EXPECT_EQ(*ExpandHome(same, "/home/ann"), same);
}

TEST(ExpandHome, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(ExpandHome("~bob/x", "/home/ann").status().code(), StatusCode::kInvalidArgument);
  const Status without = ExpandHome("~/x", "").status();
  EXPECT_EQ(without.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(without.message(), "~/x: the environment has no HOME that ~ could stand for; write the whole path");
  EXPECT_FALSE(ExpandHome("~/x", "relative").ok());
}

TEST(UniqueFd, ClosesWhatItOwnsOnce) {
  int number = -1;
  {
    UniqueFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    number = fd.get();
    UniqueFd moved(std::move(fd));
    EXPECT_FALSE(fd.ok());
    EXPECT_TRUE(moved.ok());
    EXPECT_EQ(moved.get(), number);
  }
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
}

}  // namespace
}  // namespace modelstore
