// Pushes onto a disk that is nearly full.
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kDiskBytes = 32 << 20;

class SmallDiskTest : public ModelTest {
 protected:
  void SetUp() override {
    fs::create_directory(store_dir());
    const std::string size = "size=" + std::to_string(kDiskBytes);
    if (mount("none", store_dir().c_str(), "tmpfs", 0, size.c_str()) != 0)
      GTEST_SKIP() << "a tmpfs cannot be mounted here: " << std::strerror(errno);
    is_mounted_ = true;
  }
  void TearDown() override {
    Close();
    if (is_mounted_) {
      EXPECT_EQ(umount2(store_dir().c_str(), MNT_DETACH), 0) << std::strerror(errno);
    }
  }
  // A file of `bytes` bytes that has no blocks.
  std::string WriteHole(const std::string& model, uint64_t bytes) {
    const std::string folder = WriteSource(model, "hole.bin", {});
    fs::resize_file(folder + "/hole.bin", bytes);
    return folder;
  }
  static Bytes Text(size_t bytes) {
    std::string text;
    for (uint64_t i = 0; text.size() < bytes; ++i)
      text += "{\"token\": \"something that repeats\", \"id\": " + std::to_string(i) + "}\n";
    const ByteSpan span = AsBytes(text);
    return Bytes(span.begin(), span.end());
  }

 private:
  bool is_mounted_ = false;
};

// More than the disk has, but not once it is coded.
TEST_F(SmallDiskTest, WhatFitsIsStored) {
  MustPush(WriteHole("hole", uint64_t{1} << 28));
  const std::string text = WriteSource("text", "tokens.json", Text(2 * kDiskBytes));
  MustPush(text);
  TestTensor zeros{"w", DType::kBF16, {kDiskBytes, 2}, Bytes(4 * kDiskBytes)};
  MustPush(WriteModel("zeros", {zeros}));
  // The same noise four times, and then a fifth time as a model of its own.
  const Bytes noise = NoiseBytes(1, kDiskBytes / 2);
  std::string folder;
  for (int i = 0; i < 4; ++i) folder = WriteSource("noise", std::to_string(i) + ".bin", noise);
  MustPush(folder);
  MustPush(WriteSource("again", "noise.bin", noise));
  ExpectStored("text", text);
  ExpectStored("noise", folder);
  ExpectClean();
}

TEST_F(SmallDiskTest, WhatDoesNotFitIsRefusedBeforeAnythingIsWritten) {
  catalog();
  std::string phase;
  JobControl job([&](const JobProgress& progress) { phase = progress.phase; });
  const std::string folder = WriteSource("noise", "noise.bin", NoiseBytes(1, 2 * kDiskBytes));
  const Result<PushReport> refused = PushWith(folder, {}, job);
  EXPECT_EQ(refused.status().code(), StatusCode::kNoSpace);
  EXPECT_NE(refused.status().message().find("are missing"), std::string_view::npos) << refused.status().ToString();
  EXPECT_EQ(phase, "estimating");
  EXPECT_EQ(CountKeys(Family::kBlocks), 0u);
}

}  // namespace
}  // namespace modelstore
