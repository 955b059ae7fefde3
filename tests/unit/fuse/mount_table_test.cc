#include "fuse/mount_table.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

TEST(MountTable, ParsesMountInfo) {
  const auto entries = ParseMountInfo(
      "36 35 98:0 /mnt1 /mnt\\0402/a\\134b rw,noatime master:1 shared:2 - ext4 /dev/root rw,errors=continue\n"
      "40 36 0:57 / /models ro,nosuid - fuse.modelstore modelstore ro,user_id=0\n");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].mountpoint, "/mnt 2/a\\b");
  EXPECT_EQ(entries[0].type, "ext4");
  EXPECT_EQ(entries[0].device_major, 98u);
  EXPECT_EQ(entries[1].mountpoint, "/models");
  EXPECT_EQ(entries[1].type, kMountType);
  EXPECT_EQ(entries[1].device_minor, 57u);
}

TEST(MountTable, SkipsLinesThatMakeNoSense) {
  EXPECT_TRUE(ParseMountInfo("").empty());
  EXPECT_TRUE(
      ParseMountInfo("\n\nx\n36 35 980 / /a rw - ext4 d o\n36 35 a:b / /a rw - ext4\n36 35 1:2 / /a rw\n").empty());
  const auto cut = ParseMountInfo("36 35 1:2 / /a\\04 rw - t\\");
  ASSERT_EQ(cut.size(), 1u);
  EXPECT_EQ(cut[0].mountpoint, "/a\\04");
  EXPECT_EQ(cut[0].type, "t\\");
}

TEST(MountTable, ResolvesFoldersThatDoNotExistYet) {
  EXPECT_EQ(*ResolveMountpoint("/"), "/");
  EXPECT_EQ(*ResolveMountpoint("/proc/self/../nothing-here/below/"), "/proc/nothing-here/below");
  EXPECT_EQ(ResolveMountpoint("").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ResolveMountpoint("/nothing-here/../x").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ResolveMountpoint("/nothing-here/..").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ResolveMountpoint("/proc/version/x").status().code(), StatusCode::kIo);
}

TEST(MountTable, FindsTheMountThatIsThere) {
  const auto proc = FindMount("/proc");
  ASSERT_TRUE(proc.ok());
  ASSERT_TRUE(proc->has_value());
  EXPECT_EQ((*proc)->type, "proc");
  EXPECT_FALSE(IsDead("/proc"));
  EXPECT_FALSE(FindMount("/no/such/place")->has_value());
}

}  // namespace
}  // namespace modelstore
