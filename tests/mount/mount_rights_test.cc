// What other users get on the mount of what they could not get at its source.
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

constexpr uid_t kAnn = 41001, kBob = 41002;
constexpr gid_t kLab = 41003, kProject = 41004;

struct AclEntry {
  uint16_t tag, bits;
  uint32_t id = 0xffffffff;
};
constexpr uint16_t kOwner = 0x01, kUser = 0x02, kOwningGroup = 0x04, kGroup = 0x08, kMask = 0x10, kOthers = 0x20;

class MountRightsTest : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (!IsSkipped() && ::geteuid() != 0) GTEST_SKIP() << "acting as other users needs root";
  }

  // False where the file system has none.
  static bool SetList(const std::string& path, const std::vector<AclEntry>& entries, bool is_default = false) {
    std::string list("\2\0\0\0", 4);
    for (const AclEntry& entry : entries) {
      list.append(reinterpret_cast<const char*>(&entry.tag), 2).append(reinterpret_cast<const char*>(&entry.bits), 2);
      list.append(reinterpret_cast<const char*>(&entry.id), 4);
    }
    const char* name = is_default ? "system.posix_acl_default" : "system.posix_acl_access";
    return ::setxattr(path.c_str(), name, list.data(), list.size(), 0) == 0;
  }

  // 0 when a user of these groups can read the file, else the error.
  static int ReadAs(uid_t uid, const std::vector<gid_t>& groups, const std::string& path) {
    return InChild([&] {
      if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) return 255;
      return ::open(path.c_str(), O_RDONLY) >= 0 ? 0 : errno;
    });
  }

  // The file can be read on the mount by whom it can be read by at its source.
  void ExpectAsAtTheSource(const std::string& model, const std::string& path, uid_t uid,
                           const std::vector<gid_t>& groups, int expected) {
    EXPECT_EQ(ReadAs(uid, groups, SourceDir(model) + "/" + path), expected) << "source " << model << "/" << path;
    EXPECT_EQ(ReadAs(uid, groups, At(model + "/" + path)), expected) << "mount " << model << "/" << path;
  }

  mode_t ModeOf(const std::string& path) {
    struct stat st;
    return ::stat(At(path).c_str(), &st) == 0 ? st.st_mode & 07777 : 0;
  }

  std::string InfoAs(uid_t uid, const std::vector<gid_t>& groups, const std::string& path) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
    const int code = InChild([&] {
      if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) return 255;
      char value[4096];
      const ssize_t n = ::getxattr(At(path).c_str(), "user.modelstore.info", value, sizeof value);
      if (n < 0) return errno;
      return ::write(ends[1], value, static_cast<size_t>(n)) == n ? 0 : 254;
    });
    ::close(ends[1]);
    char value[4096];
    const ssize_t n = ::read(ends[0], value, sizeof value);
    ::close(ends[0]);
    return code == 0 ? std::string(value, static_cast<size_t>(n)) : "errno " + std::to_string(code);
  }
};

TEST_F(MountRightsTest, WhatAFolderKeepsPeopleFromStaysSo) {
  WriteSource("home", "ckpt/model.bin", "weights");
  WriteSource("home", "ckpt/.env", "HF_TOKEN=hf_xxx");
  WriteSource("home", "run.sh", "#!/bin/sh\n", 0755);
  WriteSource("lab", "inner/shared.bin", "for the lab");
  WriteSource("open", "closed/secret.bin", "for the owner");
  WriteSource("open", "public.bin", "for all");
  WriteSource("open", "run.sh", "#!/bin/sh\n", 0755);
  ASSERT_EQ(::chmod(SourceDir("home").c_str(), 0700), 0);
  for (const char* path : {"", "/inner", "/inner/shared.bin"})
    ASSERT_EQ(::chown((SourceDir("lab") + path).c_str(), 0, kLab), 0);
  ASSERT_EQ(::chmod(SourceDir("lab").c_str(), 02750), 0);
  ASSERT_EQ(::chmod((SourceDir("open") + "/closed").c_str(), 0700), 0);
  Serve();
  for (const char* model : {"home", "lab", "open"}) ASSERT_EQ(Ask("push " + std::string(model)), "ok");

  for (const char* path : {"ckpt/model.bin", "ckpt/.env", "run.sh"}) {
    ExpectAsAtTheSource("home", path, kBob, {}, EACCES);
    ExpectAsAtTheSource("home", path, kBob, {kLab}, EACCES);
  }
  ExpectAsAtTheSource("lab", "inner/shared.bin", kBob, {}, EACCES);
  ExpectAsAtTheSource("lab", "inner/shared.bin", kBob, {7, kLab}, 0);
  ExpectAsAtTheSource("open", "closed/secret.bin", kBob, {}, EACCES);
  ExpectAsAtTheSource("open", "public.bin", kBob, {}, 0);
  EXPECT_EQ(ModeOf("home"), 0500u);
  EXPECT_EQ(ModeOf("home/run.sh"), 0500u);
  EXPECT_EQ(ModeOf("open/run.sh"), 0555u);
  EXPECT_EQ(ModeOf("open/closed"), 0500u);
}

TEST_F(MountRightsTest, ALinkIsAsOpenAsItsFileAndItsOwnFolder) {
  WriteSource("private", "secret.bin", "for the owner");
  WriteSource("public", "open.bin", "for all");
  WriteSource("links", "own.bin", "own");
  ASSERT_EQ(::chmod(SourceDir("private").c_str(), 0700), 0);
  for (const auto& [link, target] : std::vector<std::pair<std::string, std::string>>{
           {"secret.bin", SourceDir("private") + "/secret.bin"}, {"open.bin", "../public/open.bin"}})
    ASSERT_EQ(::symlink(target.c_str(), (SourceDir("links") + "/" + link).c_str()), 0);
  Serve();
  ASSERT_EQ(Ask("push links"), "ok");
  ExpectAsAtTheSource("links", "secret.bin", kBob, {}, EACCES);
  ExpectAsAtTheSource("links", "open.bin", kBob, {}, 0);
  ExpectAsAtTheSource("links", "own.bin", kBob, {}, 0);
}

TEST_F(MountRightsTest, AnAccessControlListWidensNothing) {
  WriteSource("m", "secret.bin", "for ann and bob", 0600);
  WriteSource("m", "not-bob.bin", "for all but bob");
  WriteSource("m", "public.bin", "for all");
  WriteSource("proj", "old.bin", "before the list");
  WriteSource("listed", "weights.bin", "behind a folder with a list");
  const std::string secret = SourceDir("m") + "/secret.bin";
  ASSERT_EQ(::chown(secret.c_str(), kAnn, kLab), 0);
  if (!SetList(secret, {{kOwner, 6}, {kUser, 4, kBob}, {kOwningGroup, 0}, {kMask, 4}, {kOthers, 0}}))
    GTEST_SKIP() << "no access control lists here: " << std::strerror(errno);
  ASSERT_TRUE(SetList(SourceDir("m") + "/not-bob.bin",
                      {{kOwner, 6}, {kUser, 0, kBob}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 4}}));
  // What is made in the folder from now on is the project's; its group is the maker's own.
  ASSERT_TRUE(SetList(SourceDir("proj"),
                      {{kOwner, 7}, {kOwningGroup, 0}, {kGroup, 5, kProject}, {kMask, 5}, {kOthers, 0}},
                      /*is_default=*/true));
  WriteSource("proj", "new.bin", "after it", 0640);
  ASSERT_EQ(::chown((SourceDir("proj") + "/new.bin").c_str(), kAnn, kLab), 0);
  ASSERT_TRUE(
      SetList(SourceDir("listed"), {{kOwner, 7}, {kUser, 5, kAnn}, {kOwningGroup, 0}, {kMask, 5}, {kOthers, 0}}));
  ASSERT_EQ(::chown(SourceDir("listed").c_str(), 0, kLab), 0);
  ASSERT_EQ(::chown((SourceDir("listed") + "/weights.bin").c_str(), 0, kLab), 0);
  Serve();
  for (const char* model : {"m", "proj", "listed"})
    ASSERT_EQ(Ask("push " + std::string(model) + " " + std::to_string(kAnn)), "ok");

  ExpectAsAtTheSource("m", "secret.bin", kAnn, {}, 0);
  ExpectAsAtTheSource("m", "secret.bin", kBob + 1, {kLab}, EACCES);
  ExpectAsAtTheSource("m", "not-bob.bin", kBob, {}, EACCES);
  ExpectAsAtTheSource("m", "public.bin", kBob, {}, 0);
  ExpectAsAtTheSource("proj", "new.bin", kBob, {kLab}, EACCES);
  ExpectAsAtTheSource("proj", "old.bin", kBob, {}, 0);
  ExpectAsAtTheSource("listed", "weights.bin", kBob, {kLab}, EACCES);
}

TEST_F(MountRightsTest, ABaseIsNamedOnlyToWhoMaySeeIt) {
  const auto write = [&](const std::string& model, uint64_t noise, uint32_t mode) {
    WriteSource(model, "model.safetensors", Checkpoint(1, 300'001, 4, noise), mode);
  };
  write("base", 0, 0640);
  write("ft", 7, 0644);
  ASSERT_EQ(::chown((SourceDir("base") + "/model.safetensors").c_str(), 0, kLab), 0);
  Serve();
  ASSERT_EQ(Ask("push base " + std::to_string(kAnn)), "ok");
  ASSERT_EQ(Ask("push ft " + std::to_string(kAnn)), "ok");

  const std::string named = "\"base\":\"base\"", hidden = "\"base\":null";
  for (const std::string path : {"ft", "ft/model.safetensors"}) {
    const auto info = [&](uid_t uid, const std::vector<gid_t>& groups) { return InfoAs(uid, groups, path); };
    EXPECT_NE(info(0, {}).find(named), std::string::npos) << info(0, {});
    EXPECT_NE(info(kAnn, {}).find(named), std::string::npos) << info(kAnn, {});
    EXPECT_NE(info(kBob, {}).find(hidden), std::string::npos) << info(kBob, {});
    EXPECT_NE(info(kBob, {7, kLab}).find(named), std::string::npos) << "by a supplementary group";
    EXPECT_NE(info(kLab, {}).find(named), std::string::npos) << "by the primary group: " << info(kLab, {});
  }
  // What the caller may do is asked each time.
  write("base", 0, 0600);
  ASSERT_EQ(Ask("update base " + std::to_string(kAnn)), "ok");
  EXPECT_NE(InfoAs(kBob, {kLab}, "ft").find(hidden), std::string::npos);
}

}  // namespace
}  // namespace modelstore
