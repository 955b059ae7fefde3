// Names, attributes and their changes as a user sees them.
#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "codec/support/hash.h"
#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class MountNamesTest : public MountTest {
 protected:
  // Everything below the mount, as paths relative to it.
  std::set<std::string> Walk() const {
    std::set<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(mountpoint()))
      found.insert(fs::relative(entry.path(), mountpoint()));
    return found;
  }
  static int Errno(int result) { return result < 0 ? errno : 0; }
  static std::string Xattr(const std::string& path, const char* name) {
    std::string value(4096, '\0');
    const ssize_t n = ::getxattr(path.c_str(), name, value.data(), value.size());
    if (n < 0) return "errno " + std::to_string(errno);
    value.resize(static_cast<size_t>(n));
    return value;
  }
};

TEST_F(MountNamesTest, ShowsWhatWasPushed) {
  ServeTwoModels();
  EXPECT_THAT(Walk(), UnorderedElementsAre("base", "base/config.json", "base/empty", "base/model.safetensors",
                                           "base/run.sh", "base/secret", "base/sub", "base/sub/dir",
                                           "base/sub/dir/vocab.txt", "team", "team/ft", "team/ft/model.safetensors"));
  for (const auto& [path, bytes] : sources("base")) EXPECT_TRUE(ReadAll(At("base/" + path)) == bytes) << path;
}

TEST_F(MountNamesTest, Attributes) {
  ServeTwoModels();
  for (const auto& [path, mode] : std::vector<std::pair<std::string, mode_t>>{
           {"model.safetensors", 0444}, {"config.json", 0440}, {"run.sh", 0555}, {"secret", 0400}, {"empty", 0444}}) {
    struct stat st;
    ASSERT_EQ(::stat(At("base/" + path).c_str(), &st), 0);
    EXPECT_EQ(st.st_mode, S_IFREG | mode) << path;
    EXPECT_EQ(st.st_size, static_cast<off_t>(sources("base").at(path).size()));
    EXPECT_EQ(st.st_mtim.tv_sec, 1'600'000'000);
    EXPECT_EQ(st.st_mtim.tv_nsec, 123'456'789);
    EXPECT_EQ(st.st_uid, ::geteuid());
    EXPECT_EQ(st.st_gid, ::getegid());
    EXPECT_EQ(st.st_nlink, 1u);
    EXPECT_EQ(st.st_blocks == 0, st.st_size == 0) << path;  // 0 blocks with a size means a hole to tar
  }
  struct stat base, finetune, folder, root;
  ASSERT_EQ(::stat(At("base/model.safetensors").c_str(), &base), 0);
  ASSERT_EQ(::stat(At("team/ft/model.safetensors").c_str(), &finetune), 0);
  ASSERT_EQ(::stat(At("base/sub").c_str(), &folder), 0);
  ASSERT_EQ(::stat(mountpoint().c_str(), &root), 0);
  EXPECT_LT(base.st_blocks * 512, base.st_size);      // du shows what it costs
  EXPECT_LT(finetune.st_blocks * 2, base.st_blocks);  // and a finetune costs little
  EXPECT_GT(finetune.st_blocks * 512, finetune.st_size / 100);
  EXPECT_EQ(folder.st_mode, S_IFDIR | 0555u);
  EXPECT_EQ(root.st_mode, S_IFDIR | 0555u);
  EXPECT_EQ(root.st_ino, 1u);

  DIR* listing = ::opendir(At("base").c_str());
  ASSERT_NE(listing, nullptr);
  while (const dirent* entry = ::readdir(listing)) {
    if (entry->d_name[0] == '.') continue;
    struct stat st;
    ASSERT_EQ(::stat(At("base/" + std::string(entry->d_name)).c_str(), &st), 0);
    EXPECT_EQ(st.st_ino, entry->d_ino) << entry->d_name;
    EXPECT_EQ(entry->d_type, S_ISDIR(st.st_mode) ? DT_DIR : DT_REG) << entry->d_name;
  }
  ::closedir(listing);

  struct statvfs fs_stat;
  ASSERT_EQ(::statvfs(mountpoint().c_str(), &fs_stat), 0);
  struct statvfs store_stat;  // the room for models is that of the store
  ASSERT_EQ(::statvfs(store_dir().c_str(), &store_stat), 0);
  EXPECT_EQ(fs_stat.f_blocks * fs_stat.f_frsize, store_stat.f_blocks * store_stat.f_frsize);
  EXPECT_EQ(fs_stat.f_bavail == 0, store_stat.f_bavail == 0);
  EXPECT_EQ(fs_stat.f_files, 0u);  // `df -i` gives no percentage
  EXPECT_EQ(fs_stat.f_namemax, 255u);
  EXPECT_TRUE(fs_stat.f_flag & ST_RDONLY);
  EXPECT_TRUE(fs_stat.f_flag & ST_NOSUID);
  EXPECT_TRUE(fs_stat.f_flag & ST_NODEV);
}

TEST_F(MountNamesTest, NothingCanBeChanged) {
  ServeTwoModels();
  const std::string file = At("base/config.json");
  EXPECT_EQ(Errno(::open(file.c_str(), O_WRONLY)), EROFS);
  EXPECT_EQ(Errno(::open(file.c_str(), O_RDWR)), EROFS);
  EXPECT_EQ(Errno(::open(file.c_str(), O_RDONLY | O_TRUNC)), EROFS);
  EXPECT_EQ(Errno(::open(At("base/new").c_str(), O_WRONLY | O_CREAT, 0644)), EROFS);
  EXPECT_EQ(Errno(::truncate(file.c_str(), 0)), EROFS);
  EXPECT_EQ(Errno(::unlink(file.c_str())), EROFS);
  EXPECT_EQ(Errno(::rename(file.c_str(), At("base/other").c_str())), EROFS);
  EXPECT_EQ(Errno(::mkdir(At("new").c_str(), 0755)), EROFS);
  EXPECT_EQ(Errno(::rmdir(At("base").c_str())), EROFS);
  EXPECT_EQ(Errno(::chmod(file.c_str(), 0777)), EROFS);
  EXPECT_EQ(Errno(::utimensat(AT_FDCWD, file.c_str(), nullptr, 0)), EROFS);
  EXPECT_EQ(Errno(::setxattr(file.c_str(), "user.x", "y", 1, 0)), EROFS);
  EXPECT_EQ(Errno(::symlink("x", At("link").c_str())), EROFS);
  EXPECT_TRUE(ReadAll(file) == sources("base").at("config.json"));
}

TEST_F(MountNamesTest, WrongPathsAreNamedRightly) {
  ServeTwoModels();
  struct stat st;
  EXPECT_EQ(Errno(::stat(At("nothing").c_str(), &st)), ENOENT);
  EXPECT_EQ(Errno(::stat(At("base/nothing").c_str(), &st)), ENOENT);
  EXPECT_EQ(Errno(::stat(At("base/config.json/x").c_str(), &st)), ENOTDIR);
  EXPECT_EQ(Errno(::open(At("base").c_str(), O_WRONLY)), EISDIR);
  EXPECT_EQ(Errno(::stat(At(std::string(300, 'n')).c_str(), &st)), ENAMETOOLONG);
}

TEST_F(MountNamesTest, ModesAreEnforcedForOtherUsers) {
  ServeTwoModels();
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  EXPECT_EQ(InChild([&] {
              if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 255;
              const int fd = ::open(At("base/secret").c_str(), O_RDONLY);
              return fd < 0 ? errno : 0;
            }),
            EACCES);
  EXPECT_EQ(InChild([&] {
              if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 255;
              return ReadAll(At("base/run.sh")) == sources("base").at("run.sh") ? 0 : 1;
            }),
            0);
}

TEST_F(MountNamesTest, FilesBelongToWhoPushedThem) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root serves the files of several users and can become one of them";
  constexpr uid_t kAnn = 41001, kBob = 41002;
  constexpr gid_t kTeam = 41003;
  WriteSource("m", "secret", "for ann", 0400);
  WriteSource("m", "shared", "for the team", 0440);
  WriteSource("m", "public", "for everyone", 0444);
  WriteSource("m", "sub/nested", "deeper", 0400);
  ASSERT_EQ(::chown((SourceDir("m") + "/shared").c_str(), static_cast<uid_t>(-1), kTeam), 0);
  Serve();
  ASSERT_EQ(Ask("push m " + std::to_string(kAnn)), "ok");

  struct stat st;
  for (const std::string path : {"m", "m/sub", "m/secret", "m/shared", "m/sub/nested"}) {
    ASSERT_EQ(::stat(At(path).c_str(), &st), 0) << path;
    EXPECT_EQ(st.st_uid, kAnn) << path;
    EXPECT_EQ(st.st_gid, path == "m/shared" ? kTeam : 0) << path;
    if (S_ISDIR(st.st_mode)) {
      EXPECT_EQ(st.st_mode & 07777, path == "m" ? 0555u : 0500u) << path;
    }
  }
  ASSERT_EQ(::stat(mountpoint().c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 0u);

  // The first byte of the file, or the error, as seen by a user with these groups.
  const auto open_as = [&](uid_t uid, std::vector<gid_t> groups, const std::string& path) {
    return InChild([&] {
      if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) return 255;
      const int fd = ::open(At(path).c_str(), O_RDONLY);
      if (fd < 0) return errno;
      char first = 0;
      return ::read(fd, &first, 1) == 1 ? static_cast<int>(first) : 254;
    });
  };
  EXPECT_EQ(open_as(kAnn, {}, "m/secret"), 'f');
  EXPECT_EQ(open_as(kAnn, {}, "m/sub/nested"), 'd');
  EXPECT_EQ(open_as(kAnn, {}, "m/shared"), 'f');
  EXPECT_EQ(open_as(kBob, {}, "m/public"), 'f');
  EXPECT_EQ(open_as(kBob, {}, "m/secret"), EACCES);
  EXPECT_EQ(open_as(kBob, {}, "m/sub/nested"), EACCES);
  EXPECT_EQ(open_as(kBob, {}, "m/shared"), EACCES);
  EXPECT_EQ(open_as(kBob, {kTeam}, "m/shared"), 'f');
  EXPECT_EQ(open_as(kBob, {kTeam}, "m/secret"), EACCES);

  // It changes hands, with the same files: what the kernel knows of the old owner is gone.
  ASSERT_EQ(Ask("update m " + std::to_string(kBob)), "ok");
  EXPECT_EQ(open_as(kBob, {}, "m/secret"), 'f');
  EXPECT_EQ(open_as(kAnn, {}, "m/secret"), EACCES);
  ASSERT_EQ(::stat(At("m").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, kBob);
}

TEST_F(MountNamesTest, OnlyWhoMayReadAFileOfAModelSeesWhatIsInIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root serves the files of several users and can become one of them";
  constexpr uid_t kAnn = 41001, kBob = 41002;
  constexpr gid_t kTeam = 41003;
  WriteSource("hidden", "sub/weights", "for ann", 0600);
  WriteSource("team", "weights", "for the team", 0640);
  WriteSource("team", "notes", "for ann", 0600);
  ASSERT_EQ(::chown((SourceDir("team") + "/weights").c_str(), static_cast<uid_t>(-1), kTeam), 0);
  Serve();
  for (const char* model : {"hidden", "team"})
    ASSERT_EQ(Ask("push " + std::string(model) + " " + std::to_string(kAnn)), "ok");

  // 0, or the error of listing the folder (of looking at the file), as a user of these groups.
  const auto as = [&](uid_t uid, std::vector<gid_t> groups, const std::function<bool()>& look) {
    return InChild([&] {
      if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) return 255;
      return look() ? 0 : errno;
    });
  };
  const auto list = [&](uid_t uid, const std::vector<gid_t>& groups, const std::string& path) {
    return as(uid, groups, [&] { return ::opendir(At(path).c_str()) != nullptr; });
  };
  const auto look = [&](uid_t uid, const std::vector<gid_t>& groups, const std::string& path) {
    struct stat st;
    return as(uid, groups, [&] { return ::stat(At(path).c_str(), &st) == 0; });
  };
  for (int i = 0; i < 2; ++i) {  // the second answer comes from the kernel
    EXPECT_EQ(list(kBob, {}, ""), 0);
    EXPECT_EQ(look(kBob, {}, "hidden"), 0);
    EXPECT_EQ(list(kBob, {kTeam}, "hidden"), EACCES);
    EXPECT_EQ(look(kBob, {kTeam}, "hidden/sub"), EACCES);
    EXPECT_EQ(look(kBob, {}, "hidden/sub/weights"), EACCES);
    EXPECT_EQ(list(kAnn, {}, "hidden/sub"), 0);
    EXPECT_EQ(look(kAnn, {}, "hidden/sub/weights"), 0);
    EXPECT_EQ(list(kBob, {}, "team"), EACCES);
    EXPECT_EQ(look(kBob, {}, "team/weights"), EACCES);
    EXPECT_EQ(list(kBob, {kTeam}, "team"), 0);
    EXPECT_EQ(look(kBob, {kTeam}, "team/weights"), 0);
  }

  // The kernel remembers nothing of the modes before.
  WriteSource("hidden", "sub/weights", "for everyone", 0644);
  WriteSource("team", "weights", "for ann alone", 0600);
  for (const char* model : {"hidden", "team"})
    ASSERT_EQ(Ask("update " + std::string(model) + " " + std::to_string(kAnn)), "ok");
  EXPECT_EQ(look(kBob, {}, "hidden/sub/weights"), 0);
  EXPECT_EQ(list(kBob, {kTeam}, "team"), EACCES);
  EXPECT_EQ(look(kBob, {kTeam}, "team/weights"), EACCES);
}

TEST_F(MountNamesTest, AnUpdateShowsOtherContentAndReadersKeepTheirs) {
  WriteSource("m", "model.safetensors", Checkpoint(1, 300'001, 4));
  WriteSource("m", "config.json", "{}");
  WriteSource("m", "gone", "only in the first version");
  Serve();
  ASSERT_EQ(Ask("push m"), "ok");
  const std::string path = At("m/model.safetensors");
  const std::string old_bytes = sources("m").at("model.safetensors");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  const int mapped_fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  char* at = static_cast<char*>(::mmap(nullptr, old_bytes.size(), PROT_READ, MAP_SHARED, mapped_fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  ::close(mapped_fd);
  const int folder = ::open(At("m").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct stat before, after, same;
  ASSERT_EQ(::fstat(fd, &before), 0);
  ASSERT_EQ(::fstatat(folder, "config.json", &same, 0), 0);

  WriteSource("m", "model.safetensors", Checkpoint(77, 300'001, 4));
  fs::remove(SourceDir("m") + "/gone");
  WriteSource("m", "new", "only in the second version");
  ASSERT_EQ(Ask("update m"), "ok");
  EXPECT_THAT(Walk(), UnorderedElementsAre("m", "m/model.safetensors", "m/config.json", "m/new"));
  EXPECT_TRUE(ReadAll(path) == sources("m").at("model.safetensors"));
  EXPECT_EQ(ReadAll(At("m/new")), "only in the second version");
  EXPECT_EQ(Errno(::stat(At("m/gone").c_str(), &after)), ENOENT);
  ASSERT_EQ(::stat(path.c_str(), &after), 0);
  EXPECT_NE(after.st_ino, before.st_ino);
  // A folder that was open shows the new version, with the files that both have.
  ASSERT_EQ(::fstatat(folder, "config.json", &after, 0), 0);
  EXPECT_EQ(after.st_ino, same.st_ino);
  EXPECT_EQ(::faccessat(folder, "new", R_OK, 0), 0);
  ::close(folder);

  // Prune frees only what nobody has open: the file that is gone.
  EXPECT_EQ(Ask("prune"), "1");
  ASSERT_EQ(Ask("drop"), "ok");
  EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  EXPECT_EQ(InChild([&] { return std::memcmp(at, old_bytes.data(), old_bytes.size()) == 0 ? 0 : 1; }), 0);
  std::string buffer(old_bytes.size(), '\0');
  ASSERT_EQ(::pread(fd, buffer.data(), buffer.size(), 0), static_cast<ssize_t>(buffer.size()));
  EXPECT_TRUE(buffer == old_bytes);
  ASSERT_EQ(::fstat(fd, &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  ::close(fd);
  EXPECT_EQ(Ask("prune"), "0");  // it is still mapped
  ::munmap(at, old_bytes.size());
  // The kernel gives an open file back some time after the last close.
  std::string pruned = "0";
  for (int attempt = 0; attempt < 1000 && pruned == "0"; ++attempt) pruned = Ask("prune");
  EXPECT_EQ(pruned, "4");  // the header is in both versions
  EXPECT_TRUE(ReadAll(path) == sources("m").at("model.safetensors"));
}

TEST_F(MountNamesTest, ExtendedAttributes) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string& bytes = sources("team/ft").at("model.safetensors");
  Sha256 sha256;
  sha256.Update(AsBytes(bytes));
  EXPECT_EQ(Xattr(path, "user.modelstore.sha256"), ToHex(sha256.Finish()));
  const std::string info = Xattr(path, "user.modelstore.info");
  EXPECT_THAT(info, HasSubstr("\"model\":\"team/ft\""));
  EXPECT_THAT(info, HasSubstr("\"fidelity\":\"exact\""));
  EXPECT_THAT(info, HasSubstr("\"base\":\"base\""));
  EXPECT_THAT(info, HasSubstr("\"logical_bytes\":" + std::to_string(bytes.size())));
  EXPECT_THAT(info, HasSubstr("\"stored_bytes\":"));
  EXPECT_THAT(Xattr(At("base/config.json"), "user.modelstore.info"), HasSubstr("\"base\":null"));
  EXPECT_THAT(Xattr(At("team/ft"), "user.modelstore.info"), HasSubstr("\"model\":\"team/ft\""));
  const std::string no_data = "errno " + std::to_string(ENODATA);
  EXPECT_EQ(Xattr(At("team/ft"), "user.modelstore.sha256"), no_data);
  EXPECT_EQ(Xattr(At("team"), "user.modelstore.info"), no_data);
  EXPECT_EQ(Xattr(path, "user.other"), no_data);
  EXPECT_EQ(Xattr(path, "security.capability"), no_data);

  char small[4];
  EXPECT_EQ(::getxattr(path.c_str(), "user.modelstore.sha256", nullptr, 0), 64);
  EXPECT_EQ(Errno(static_cast<int>(::getxattr(path.c_str(), "user.modelstore.sha256", small, sizeof(small)))), ERANGE);
  // Not listed: cp -a and rsync -X would copy them.
  char names[256];
  for (const std::string& listed : {path, At("team/ft"), mountpoint()}) {
    EXPECT_EQ(::listxattr(listed.c_str(), names, sizeof(names)), 0) << listed;
    EXPECT_EQ(::listxattr(listed.c_str(), nullptr, 0), 0) << listed;
  }
}

TEST_F(MountNamesTest, ACompactModelSaysThatItIsNotTheOriginal) {
  WriteSource("base", "model.safetensors", Checkpoint(5, 512 * 600, 1, 0, 512));
  WriteSource("ft", "model.safetensors", Checkpoint(5, 512 * 600, 1, 7, 512));
  Serve();
  ASSERT_EQ(Ask("push base"), "ok");
  ASSERT_EQ(Ask("push ft"), "ok");
  EXPECT_THAT(Walk(), UnorderedElementsAre("base", "base/model.safetensors", "ft", "ft/model.safetensors"));
  struct stat before {
  }, after{};
  ASSERT_EQ(::stat(At("ft/model.safetensors").c_str(), &before), 0);
  ASSERT_EQ(Ask("compact ft"), "ok");
  EXPECT_THAT(Walk(), UnorderedElementsAre("base", "base/model.safetensors", "ft", "ft/model.safetensors",
                                           "ft/MODELSTORE_FIDELITY.txt"));
  const std::string note = ReadAll(At("ft/MODELSTORE_FIDELITY.txt"), 100);
  EXPECT_THAT(note, HasSubstr("not the original"));
  EXPECT_THAT(note, HasSubstr("model:  ft"));
  ASSERT_EQ(::stat(At("ft/MODELSTORE_FIDELITY.txt").c_str(), &after), 0);
  EXPECT_EQ(after.st_size, static_cast<off_t>(note.size()));
  EXPECT_EQ(after.st_mode, S_IFREG | 0444u);
  // What it costs now is what `du` counts.
  ASSERT_EQ(::stat(At("ft/model.safetensors").c_str(), &after), 0);
  EXPECT_NE(after.st_blocks, before.st_blocks);
}

TEST_F(MountNamesTest, AModelThatAppearsIsSeenAtOnce) {
  ServeTwoModels();
  struct stat st;
  for (int i = 0; i < 2; ++i) {  // the second answer comes from the kernel
    EXPECT_EQ(Errno(::stat(At("late").c_str(), &st)), ENOENT);
    EXPECT_EQ(Errno(::stat(At("team/late/f").c_str(), &st)), ENOENT);
    EXPECT_FALSE(Walk().contains("late"));
  }
  WriteSource("late", "f", "now");
  WriteSource("team/late", "f", "now too");
  ASSERT_EQ(Ask("push late"), "ok");
  EXPECT_EQ(ReadAll(At("late/f")), "now");
  EXPECT_TRUE(Walk().contains("late/f"));
  ASSERT_EQ(Ask("push team/late"), "ok");
  EXPECT_EQ(ReadAll(At("team/late/f")), "now too");
  EXPECT_TRUE(Walk().contains("team/late/f"));
}

TEST_F(MountNamesTest, ContentOutlivesItsName) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string old_bytes = sources("team/ft").at("model.safetensors");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  const int mapped_fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  char* at = static_cast<char*>(::mmap(nullptr, old_bytes.size(), PROT_READ, MAP_SHARED, mapped_fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  ::close(mapped_fd);
  struct stat before, after;
  ASSERT_EQ(::fstat(fd, &before), 0);

  ASSERT_EQ(Ask("rm team/ft"), "ok");
  EXPECT_EQ(Errno(::stat(path.c_str(), &after)), ENOENT);
  EXPECT_EQ(Errno(::stat(At("team").c_str(), &after)), ENOENT);
  EXPECT_FALSE(Walk().contains("team"));

  WriteSource("team/ft", "model.safetensors", Checkpoint(77, 1000, 1));
  ASSERT_EQ(Ask("push team/ft"), "ok");
  ASSERT_EQ(Ask("drop"), "ok");
  EXPECT_TRUE(ReadAll(path) == sources("team/ft").at("model.safetensors"));
  ASSERT_EQ(::stat(path.c_str(), &after), 0);
  EXPECT_NE(before.st_ino, after.st_ino);

  // Who has it open or mapped reads the old bytes to the end, also those that were not read before.
  EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  EXPECT_EQ(InChild([&] { return std::memcmp(at, old_bytes.data(), old_bytes.size()) == 0 ? 0 : 1; }), 0);
  std::string buffer(old_bytes.size(), '\0');
  ASSERT_EQ(::pread(fd, buffer.data(), buffer.size(), 0), static_cast<ssize_t>(buffer.size()));
  EXPECT_TRUE(buffer == old_bytes);
  ASSERT_EQ(::fstat(fd, &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  EXPECT_EQ(after.st_size, static_cast<off_t>(old_bytes.size()));
  ::munmap(at, old_bytes.size());
  ::close(fd);
}

TEST_F(MountNamesTest, ARenameMovesTheNamesAndKeepsTheFiles) {
  ServeTwoModels();
  struct stat before, after;
  ASSERT_EQ(::stat(At("base/config.json").c_str(), &before), 0);
  ASSERT_TRUE(Walk().contains("base/config.json"));
  ASSERT_EQ(Ask("rename base other/place"), "ok");
  EXPECT_EQ(Errno(::stat(At("base").c_str(), &after)), ENOENT);
  ASSERT_EQ(::stat(At("other/place/config.json").c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  EXPECT_TRUE(Walk().contains("other/place/sub/dir/vocab.txt"));
  EXPECT_FALSE(Walk().contains("base"));
  EXPECT_THAT(Xattr(At("team/ft/model.safetensors"), "user.modelstore.info"), HasSubstr("\"base\":\"other/place\""));
}

TEST_F(MountNamesTest, AFolderThatVanishesIsEmptyToWhoStandsInIt) {
  ServeTwoModels();
  const int folder = ::open(At("base/sub").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_GE(folder, 0);
  ASSERT_EQ(Ask("rm team/ft"), "ok");
  ASSERT_EQ(Ask("rm base"), "ok");
  EXPECT_EQ(Errno(::openat(folder, "dir/vocab.txt", O_RDONLY)), ENOENT);
  ::close(folder);
  EXPECT_TRUE(Walk().empty());
}

TEST_F(MountNamesTest, LongListingsAreComplete) {
  for (int i = 0; i < 1500; ++i)
    WriteSource("many", "file-with-a-rather-long-name-" + std::to_string(i), std::to_string(i));
  Serve();
  ASSERT_EQ(Ask("push many"), "ok");
  for (int i = 0; i < 2; ++i) EXPECT_EQ(Walk().size(), 1501u);
  EXPECT_EQ(ReadAll(At("many/file-with-a-rather-long-name-1499")), "1499");
}

TEST_F(MountNamesTest, ChangesWhileOthersWalkAndRead) {
  ServeTwoModels();
  WriteSource("come-and-go", "f", "here");
  std::vector<pid_t> readers;
  int go_on[2];
  ASSERT_EQ(::pipe(go_on), 0);
  for (int i = 0; i < 4; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::close(go_on[1]);
      ::fcntl(go_on[0], F_SETFL, O_NONBLOCK);
      char end = 0;
      while (::read(go_on[0], &end, 1) < 0 && errno == EAGAIN) {
        const std::string seen = ReadAll(At("come-and-go/f"));
        if (seen != "here" && seen != "errno " + std::to_string(ENOENT)) ::_exit(1);
        if (ReadAll(At("base/config.json")) != sources("base").at("config.json")) ::_exit(2);
        std::error_code error;
        for (fs::recursive_directory_iterator it(mountpoint(), error), last; !error && it != last; it.increment(error))
          if (it->path().filename().empty()) ::_exit(3);
      }
      ::_exit(0);
    }
    readers.push_back(pid);
  }
  ::close(go_on[0]);
  struct stat st;
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(Ask("push come-and-go"), "ok");
    EXPECT_EQ(ReadAll(At("come-and-go/f")), "here");
    ASSERT_EQ(Ask("rm come-and-go"), "ok");
    EXPECT_EQ(Errno(::stat(At("come-and-go/f").c_str(), &st)), ENOENT);
  }
  ::close(go_on[1]);
  for (const pid_t pid : readers) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

}  // namespace
}  // namespace modelstore
