// Starting, ending, being killed and being refused.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fuse/mount.h"
#include "fuse/mount_table.h"
#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class MountLifecycleTest : public MountTest {
 protected:
  bool Mounted(const std::string& at) const {
    const auto entry = FindMount(at);
    return entry.ok() && entry->has_value();
  }
  bool Mounted() const { return Mounted(mountpoint()); }
};

TEST_F(MountLifecycleTest, StopUnmounts) {
  ServeTwoModels();
  EXPECT_TRUE(Mounted());
  EXPECT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_FALSE(Mounted());
  EXPECT_TRUE(fs::is_empty(mountpoint()));
}

TEST_F(MountLifecycleTest, KnowsTheDeviceOfItsFiles) {
  ServeTwoModels();
  struct stat file;
  ASSERT_EQ(::stat(At("base/model.safetensors").c_str(), &file), 0);
  EXPECT_EQ(Ask("device"), std::to_string(file.st_dev));
}

TEST_F(MountLifecycleTest, StopIsBoundedWhenFilesAreOpen) {
  ServeTwoModels();
  const std::string path = At("base/model.safetensors");
  const size_t bytes = sources("base").at("model.safetensors").size();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_FALSE(Mounted());
  char byte = 0;
  EXPECT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(bytes / 2)), -1);
  EXPECT_EQ(errno, ENOTCONN);
  EXPECT_EQ(InChild([&] { return static_cast<const char*>(at)[bytes / 2]; }), 128 + SIGBUS);
  ::munmap(at, bytes);
  ::close(fd);
}

TEST_F(MountLifecycleTest, ASignalMayRequestTheStop) {
  ServeTwoModels();
  Send("wait");
  SignalServer(SIGTERM);
  EXPECT_EQ(Answer(), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_FALSE(Mounted());
}

TEST_F(MountLifecycleTest, UnmountingFromOutsideEndsTheServer) {
  ServeTwoModels();
  Send("wait");
  const int fd = ::open(At("base/config.json").c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  if (::geteuid() == 0) {
    const Status busy = Unmount(mountpoint());
    EXPECT_EQ(busy.code(), StatusCode::kBusy) << busy.ToString();
    EXPECT_THAT(std::string(busy.message()), HasSubstr("open"));
  }
  ::close(fd);
  const Status status = Unmount(mountpoint() + "/");
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(Answer(), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_FALSE(Mounted());
  EXPECT_EQ(Unmount(mountpoint()).code(), StatusCode::kNotFound);
}

TEST_F(MountLifecycleTest, TheMountOfAKilledServerIsReplaced) {
  ServeTwoModels();
  const std::string path = At("base/model.safetensors");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  SignalServer(SIGKILL);
  EXPECT_EQ(WaitForServer(), 128 + SIGKILL);
  EXPECT_TRUE(Mounted());
  struct stat st;
  EXPECT_EQ(::stat(At("never-looked-up").c_str(), &st), -1);
  EXPECT_EQ(errno, ENOTCONN);

  Serve();
  EXPECT_TRUE(ReadAll(path) == sources("base").at("model.safetensors"));
  EXPECT_TRUE(ReadAll(At("team/ft/model.safetensors")) == sources("team/ft").at("model.safetensors"));
  char byte = 0;
  EXPECT_EQ(::pread(fd, &byte, 1, 0), -1);  // old descriptors never recover
  EXPECT_EQ(errno, ENOTCONN);
  ::close(fd);
  EXPECT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_FALSE(Mounted());
}

TEST_F(MountLifecycleTest, ADeadMountCanBeUnmountedFromOutside) {
  ServeTwoModels();
  SignalServer(SIGKILL);
  EXPECT_EQ(WaitForServer(), 128 + SIGKILL);
  const Status status = Unmount(mountpoint());
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_FALSE(Mounted());
}

TEST_F(MountLifecycleTest, AFolderIsMadeAndRemovedAgain) {
  const std::string made = mountpoint() + "/made/for this";
  ASSERT_EQ(TryServe(made), "");
  EXPECT_TRUE(Mounted(made));
  EXPECT_EQ(Ask("stop"), "ok");
  EXPECT_EQ(WaitForServer(), 0);
  EXPECT_TRUE(fs::exists(mountpoint()));
  EXPECT_TRUE(fs::is_empty(mountpoint()));
}

TEST_F(MountLifecycleTest, RefusesPlacesThatAreTaken) {
  std::ofstream(mountpoint() + "/mine") << "x";
  std::string error = TryServe(mountpoint());
  EXPECT_THAT(error, StartsWith("busy"));
  EXPECT_THAT(error, HasSubstr("not empty"));
  WaitForServer();

  error = TryServe(mountpoint() + "/mine");
  EXPECT_THAT(error, StartsWith("invalid_argument"));
  EXPECT_THAT(error, HasSubstr("not a folder"));
  WaitForServer();

  error = TryServe("/proc");
  EXPECT_THAT(error, StartsWith("busy"));
  EXPECT_THAT(error, HasSubstr("another file system (proc)"));
  WaitForServer();
  EXPECT_EQ(Unmount("/proc").code(), StatusCode::kNotFound);
  EXPECT_EQ(Unmount("/no/such/folder").code(), StatusCode::kNotFound);
  EXPECT_TRUE(fs::exists(mountpoint() + "/mine"));
}

TEST_F(MountLifecycleTest, ReportsTheReadAheadInForce) {
  Serve();
  const auto entry = FindMount(mountpoint());
  ASSERT_TRUE(entry.ok() && entry->has_value());
  const std::string path = "/sys/class/bdi/" + std::to_string((*entry)->device_major) + ":" +
                           std::to_string((*entry)->device_minor) + "/read_ahead_kb";
  std::ifstream file(path);
  std::string in_force = "0";
  file >> in_force;
  EXPECT_EQ(Ask("read_ahead"), in_force);
  // A container has a read-only sysfs or none.
  if (::access(path.c_str(), W_OK) == 0) {
    EXPECT_EQ(in_force, "8192");
  }
}

TEST_F(MountLifecycleTest, StartsAndStopsAgainAndAgain) {
  for (int i = 0; i < 5; ++i) {
    Serve();
    EXPECT_EQ(Ask("stop"), "ok");
    EXPECT_EQ(WaitForServer(), 0);
    EXPECT_FALSE(Mounted());
  }
}

TEST_F(MountLifecycleTest, WhatWasOpenWhenTheConnectionEndedIsLetGo) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can abort a connection";
  ServeTwoModels();
  const int fd = ::open(At("team/ft/model.safetensors").c_str(), O_RDONLY | O_CLOEXEC);
  const int folder = ::open(At("team").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_GE(folder, 0);
  char byte = 0;
  ASSERT_EQ(::read(fd, &byte, 1), 1);
  EXPECT_TRUE(Ask("counts").ends_with(" 1")) << "one open file";
  (void)Ask("accesses");
  const std::string control = ScratchFolder("control");
  ASSERT_EQ(::mount("fusectl", control.c_str(), "fusectl", 0, nullptr), 0) << std::strerror(errno);
  const std::string connection = std::to_string(minor(std::stoull(Ask("device"))));
  std::ofstream(control + "/" + connection + "/abort") << "1";
  ASSERT_EQ(Ask("ended"), "ok");
  EXPECT_TRUE(Ask("counts").ends_with(" 0"));
  EXPECT_THAT(Ask("accesses"), HasSubstr("team/ft model.safetensors"));
  ASSERT_EQ(Ask("rm team/ft"), "ok");
  EXPECT_NE(Ask("prune"), "0");  // nobody has it open
  ::close(fd);
  ::close(folder);
}

}  // namespace
}  // namespace modelstore
