// Every way in which loaders read a file must give the bytes that were pushed.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <thread>

#include "fuse/mount.h"
#include "tests/mount/mount_fixture.h"

namespace modelstore {
namespace {

constexpr const char* kModelFile = "model.safetensors";

class MountReadingTest : public MountTest {};

// Exit codes of children.
enum : int { kSame = 0, kCannotOpen = 10, kCannotMap = 11, kOtherBytes = 12, kCannotRead = 13 };

int CompareMapped(const std::string& path, const std::string& expected, int flags, bool backwards = false) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return kCannotOpen;
  const char* at = static_cast<const char*>(::mmap(nullptr, expected.size(), PROT_READ, flags, fd, 0));
  ::close(fd);  // safetensors does so before it faults
  if (at == MAP_FAILED) return kCannotMap;
  constexpr size_t kPage = 4096;
  const size_t pages = (expected.size() + kPage - 1) / kPage;
  for (size_t i = 0; i < pages; ++i) {
    const size_t page = backwards ? pages - 1 - i : i;
    const size_t n = std::min(kPage, expected.size() - page * kPage);
    if (std::memcmp(at + page * kPage, expected.data() + page * kPage, n) != 0) return kOtherBytes;
  }
  return kSame;
}

TEST_F(MountReadingTest, ReadInOddSizes) {
  ServeTwoModels();
  for (const std::string model : {"base", "team/ft"}) {
    for (const auto& [path, bytes] : sources(model)) {
      const std::string file = At(model + "/" + path);
      for (const size_t piece : {size_t{7}, size_t{4095}, size_t{4097}, size_t{65'537}, (size_t{1} << 20) + 3}) {
        if (piece == 7 && bytes.size() > 200'000) continue;  // a million system calls
        DropPages(file);
        ASSERT_TRUE(ReadAll(file, piece) == bytes) << file << " in pieces of " << piece;
      }
    }
  }
}

TEST_F(MountReadingTest, PreadAnywhere) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string& bytes = sources("team/ft").at(kModelFile);
  DropPages(path);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  std::mt19937_64 random(5);
  std::string buffer(400'000, '\0');
  for (int i = 0; i < 300; ++i) {
    const size_t offset = random() % bytes.size();
    const size_t size = 1 + random() % buffer.size();
    const ssize_t n = ::pread(fd, buffer.data(), size, static_cast<off_t>(offset));
    ASSERT_EQ(n, static_cast<ssize_t>(std::min(size, bytes.size() - offset)));
    ASSERT_EQ(std::memcmp(buffer.data(), bytes.data() + offset, static_cast<size_t>(n)), 0) << offset;
  }
  EXPECT_EQ(::pread(fd, buffer.data(), 10, static_cast<off_t>(bytes.size())), 0);
  EXPECT_EQ(::pread(fd, buffer.data(), 10, static_cast<off_t>(bytes.size() + 1'000'000)), 0);
  ::close(fd);
}

TEST_F(MountReadingTest, MapPrivateSharedAndPopulated) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string& bytes = sources("team/ft").at(kModelFile);
  for (const int flags : {MAP_PRIVATE, MAP_SHARED, MAP_SHARED | MAP_POPULATE, MAP_PRIVATE | MAP_POPULATE}) {
    for (const bool backwards : {false, true}) {
      DropPages(path);
      EXPECT_EQ(InChild([&] { return CompareMapped(path, bytes, flags, backwards); }), kSame) << flags << backwards;
    }
  }
}

TEST_F(MountReadingTest, APrivateMappingIsWrittenOnlyByItsOwner) {
  ServeTwoModels();
  const std::string path = At("base/model.safetensors");
  const std::string& bytes = sources("base").at(kModelFile);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  char* at = static_cast<char*>(::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  at[5000] = static_cast<char>(~bytes[5000]);
  EXPECT_TRUE(ReadAll(path) == bytes);
  ::munmap(at, bytes.size());
  EXPECT_EQ(::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  ::close(fd);
}

TEST_F(MountReadingTest, DirectReads) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string& bytes = sources("team/ft").at(kModelFile);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  ASSERT_GE(fd, 0) << std::strerror(errno);
  constexpr size_t kPiece = 1 << 20;
  const std::unique_ptr<char, void (*)(void*)> buffer(static_cast<char*>(std::aligned_alloc(4096, kPiece)), std::free);
  size_t done = 0;
  ssize_t n = 0;
  while ((n = ::pread(fd, buffer.get(), kPiece, static_cast<off_t>(done))) > 0) {
    ASSERT_EQ(std::memcmp(buffer.get(), bytes.data() + done, static_cast<size_t>(n)), 0) << done;
    done += static_cast<size_t>(n);
  }
  EXPECT_EQ(n, 0);
  EXPECT_EQ(done, bytes.size());
  ::close(fd);
}

TEST_F(MountReadingTest, ReadsGoOnAfterADuplicateIsClosed) {
  ServeTwoModels();
  const std::string path = At("base/model.safetensors");
  const std::string& bytes = sources("base").at(kModelFile);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::close(::dup(fd)), 0);  // flushes
  EXPECT_EQ(InChild([&] { return ::close(fd); }), 0);
  std::string buffer(bytes.size(), '\0');
  size_t done = 0;
  ssize_t n = 0;
  while ((n = ::pread(fd, buffer.data() + done, buffer.size() - done, static_cast<off_t>(done))) > 0)
    done += static_cast<size_t>(n);
  EXPECT_TRUE(buffer == bytes);
  ::close(fd);
}

// transformers had to special-case a mount that deadlocked here.
TEST_F(MountReadingTest, SixteenProcessesFaultOneFileWithASmallCache) {
  WriteSource("base", kModelFile, Checkpoint(3, 6'000'000, 2));
  WriteSource("ft", kModelFile, Checkpoint(3, 6'000'000, 2, 9));
  Serve(32ull << 20);  // of which reading gets 16 MiB; base and finetune have 24 MB each
  ASSERT_EQ(Ask("push base"), "ok");
  ASSERT_EQ(Ask("push ft"), "ok");
  const std::string path = At("ft/model.safetensors");
  const std::string& bytes = sources("ft").at(kModelFile);
  DropPages(path);
  std::vector<pid_t> children;
  for (int i = 0; i < 16; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (i % 4 == 3) {  // page by page in an order of its own
        const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        const char* at = static_cast<const char*>(::mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, fd, 0));
        if (at == MAP_FAILED) ::_exit(kCannotMap);
        ::madvise(const_cast<char*>(at), bytes.size(), MADV_RANDOM);
        std::mt19937_64 random(static_cast<uint64_t>(i));
        for (int k = 0; k < 3000; ++k) {
          const size_t offset = random() % bytes.size();
          if (at[offset] != bytes[offset]) ::_exit(kOtherBytes);
        }
        ::_exit(kSame);
      }
      ::_exit(CompareMapped(path, bytes, i % 2 ? MAP_SHARED : MAP_PRIVATE, i % 4 == 2));
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == kSame) << status;
  }
  EXPECT_LE(std::stoull(Ask("peak")), 16ull << 20);
}

TEST_F(MountReadingTest, ADamagedBlockIsAnErrorAndNeverOtherBytes) {
  ServeTwoModels();
  ASSERT_EQ(Ask("corrupt base sub/dir/vocab.txt"), "ok");
  const std::string path = At("base/sub/dir/vocab.txt");
  DropPages(path);
  EXPECT_EQ(ReadAll(path), "errno " + std::to_string(EIO));
  EXPECT_EQ(InChild([&] { return CompareMapped(path, sources("base").at("sub/dir/vocab.txt"), MAP_SHARED); }),
            128 + SIGBUS);
  EXPECT_TRUE(ReadAll(At("base/model.safetensors")) == sources("base").at(kModelFile));
}

TEST_F(MountReadingTest, ADamagedBaseIsAnErrorInItsFinetunes) {
  ServeTwoModels();
  ASSERT_EQ(Ask("corrupt base model.safetensors"), "ok");
  const std::string path = At("team/ft/model.safetensors");
  DropPages(path);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  char byte = 0;
  const size_t in_a_delta = sources("team/ft").at(kModelFile).size() / 2;
  EXPECT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(in_a_delta)), -1);
  EXPECT_EQ(errno, EIO);
  ::close(fd);
  EXPECT_TRUE(ReadAll(At("base/sub/dir/vocab.txt")) == sources("base").at("sub/dir/vocab.txt"));
}

TEST_F(MountReadingTest, CountsWhatItServes) {
  ServeTwoModels();
  const auto counts = [&] {
    std::istringstream text(Ask("counts"));
    MountStats stats;
    text >> stats.reads >> stats.read_bytes >> stats.errors >> stats.open_files;
    return stats;
  };
  const int fd = ::open(At("base/config.json").c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(counts().open_files, 1u);
  ::close(fd);
  while (counts().open_files != 0) std::this_thread::yield();  // the kernel tells of a close later
  const MountStats before = counts();
  const std::string& bytes = sources("base").at(kModelFile);
  ASSERT_TRUE(ReadAll(At("base/model.safetensors")) == bytes);
  const MountStats after = counts();
  EXPECT_GT(after.reads, before.reads);
  EXPECT_EQ(after.read_bytes - before.read_bytes, bytes.size());
  EXPECT_EQ(after.errors, 0u);
  ASSERT_EQ(Ask("corrupt base sub/dir/vocab.txt"), "ok");
  DropPages(At("base/sub/dir/vocab.txt"));
  EXPECT_EQ(ReadAll(At("base/sub/dir/vocab.txt")), "errno " + std::to_string(EIO));
  EXPECT_GE(counts().errors, 1u);
}

TEST_F(MountReadingTest, TellsOfEachFileWhenTheLastMappingIsGone) {
  ServeTwoModels();
  const std::string path = At("team/ft/model.safetensors");
  const std::string& bytes = sources("team/ft").at(kModelFile);
  DropPages(path);
  std::string told;
  while (told.empty()) told = Ask("accesses");  // of DropPages
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  void* const at = ::mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(at, MAP_FAILED);
  ::close(fd);
  ASSERT_EQ(std::memcmp(at, bytes.data(), bytes.size()), 0);
  EXPECT_EQ(Ask("accesses"), "");
  ::munmap(at, bytes.size());
  for (told.clear(); told.empty();) told = Ask("accesses");
  std::ifstream comm("/proc/self/comm");
  std::string process;
  std::getline(comm, process);
  const std::string size = std::to_string(bytes.size());
  EXPECT_EQ(told, "team/ft model.safetensors " + process + " " + std::to_string(::getpid()) + " " +
                      std::to_string(::getuid()) + " " + size + " " + size + " 1 0 1;");
}

TEST_F(MountReadingTest, ASecondReadAsksTheServerForNothing) {
  ServeTwoModels();
  const std::string path = At("base/config.json");
  const std::string& bytes = sources("base").at("config.json");
  ASSERT_TRUE(ReadAll(path) == bytes);
  ASSERT_EQ(Ask("corrupt base config.json"), "ok");
  EXPECT_TRUE(ReadAll(path) == bytes);  // opened anew: the pages were kept
}

}  // namespace
}  // namespace modelstore
