// modelstored with a device: what it says of it, and that the mount gives the same bytes whatever becomes of it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "tests/integration/daemon/daemon_fixture.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::HasSubstr;

class DaemonGpuTest : public DaemonTest {
 protected:
  void TearDown() override {
    unsetenv("MODELSTORE_TEST_GPU");
    DaemonTest::TearDown();
  }
  static std::string ConfigWith(const std::string& mode) {
    return "[gpu]\nmode = \"" + mode + "\"\nmemory_bytes = \"36M\"\nplugin = \"" MODELSTORE_HOST_PLUGIN "\"\n";
  }
  std::string State() const { return Call("status").At("/result/decode/gpu/state"); }
  std::string AwaitState() const {
    while (State() == "starting") usleep(20'000);
    return State();
  }
  // A finetune and its base, pushed; the finetune's bytes.
  Bytes PushPair() {
    std::vector<TestTensor> base, tuned;
    for (uint64_t i = 0; i < 16; ++i) base.push_back(RandomTensor("layer." + std::to_string(i), {512, 320}, 10 + i));
    for (const TestTensor& tensor : base) tuned.push_back(Finetuned(tensor, 77));
    for (const auto& [name, tensors] : {std::pair("base", base), std::pair("tuned", tuned)}) {
      WritePath(root() + "/" + name + ".safetensors", SafetensorsFile(tensors));
      EXPECT_EQ(Push(name, root() + "/" + name + ".safetensors").Code(), "");
    }
    return SafetensorsFile(tuned);
  }
  // In order, not faster than a device of this kind may be.
  Bytes ReadSlowly(const std::string& path) const {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    Bytes out(std::filesystem::file_size(path));
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t n =
          pread(fd, out.data() + done, std::min<size_t>(64 << 10, out.size() - done), static_cast<off_t>(done));
      if (n <= 0) break;
      done += static_cast<size_t>(n);
      usleep(1000);
    }
    EXPECT_EQ(done, out.size());
    close(fd);
    return out;
  }
  std::string MountedFile(const std::string& model) const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(mountpoint() + "/" + model))
      if (entry.is_regular_file()) return entry.path();
    return "";
  }
};

TEST_F(DaemonGpuTest, TheMountReadsAheadOnIt) {
  StartDaemon({.config = ConfigWith("0")});
  EXPECT_EQ(AwaitState(), "used");
  const Reply status = Call("status");
  EXPECT_EQ(status.At("/result/decode/gpu/name"), "host model");
  EXPECT_EQ(status.At("/result/decode/gpu/device"), "0");
  EXPECT_NE(status.At("/result/decode/gpu/measured_cpu_bytes_per_second"), "0");
  if (!can_mount()) return;  // the rest is gpu_decoder_test's too
  const Bytes tuned = PushPair();
  const auto decoded = [&] { return Call("status").At("/result/decode/gpu/decoded_bytes"); };
  for (int attempt = 0; attempt < 50 && decoded() == "0"; ++attempt)
    EXPECT_TRUE(ReadSlowly(MountedFile("tuned")) == tuned);
  EXPECT_NE(decoded(), "0");
}

TEST_F(DaemonGpuTest, ADriverThatCrashesTakesNothingDown) {
  setenv("MODELSTORE_TEST_GPU", "crash", 1);
  StartDaemon({.config = ConfigWith("auto")});
  EXPECT_EQ(AwaitState(), "none");
  EXPECT_THAT(Call("status").At("/result/decode/gpu/reason"), HasSubstr("crashed"));
  const Bytes tuned = PushPair();
  if (!can_mount()) return;
  EXPECT_TRUE(ReadSlowly(MountedFile("tuned")) == tuned);
}

TEST_F(DaemonGpuTest, OffIsOff) {
  setenv("MODELSTORE_TEST_GPU", "crash", 1);
  StartDaemon({.config = ConfigWith("off")});
  EXPECT_EQ(State(), "off");
}

// The driver is not waited for at the end.
TEST_F(DaemonGpuTest, StopsWhileADeviceStarts) {
  setenv("MODELSTORE_TEST_GPU", "hang", 1);
  StartDaemon({.config = ConfigWith("0")});
  EXPECT_EQ(State(), "starting");
  Signal(SIGTERM);
  EXPECT_EQ(WaitForDaemon(), 0);
}

}  // namespace
}  // namespace modelstore
