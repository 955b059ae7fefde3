// bench_reader ACCESS FILE READERS [COUNT]: lets READERS processes read FILE at once and prints one JSON line: seconds
// from the common start until the last one is done (opening included, starting the processes not), bytes and accesses
// of all together, their CPU seconds, and the largest peak of their memory. Nothing that a script adds to a read is in
// these figures, so the same program reads every server that tests/bench/compare.py compares.
//
// ACCESS: read (1 MiB a call), mmap (every page of a shared mapping, in order), random-pread and random-mmap (COUNT
// pages a reader, the same ones in every run; the mapping with MADV_RANDOM).
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPiece = 1 << 20;
constexpr uint64_t kMaxReaders = 1024;
constexpr uint64_t kDefaultCount = 2000;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "bench_reader: %s: %s\n", what.c_str(), std::strerror(errno));
  std::_Exit(1);
}

struct File {
  int fd;
  size_t bytes;

  explicit File(const char* path) : fd(::open(path, O_RDONLY | O_CLOEXEC)), bytes(0) {
    struct stat st;
    if (fd < 0 || ::fstat(fd, &st) != 0) Fail(path);
    bytes = static_cast<size_t>(st.st_size);
  }

  // Without the descriptor afterwards, as loaders do it.
  const volatile char* Map() {
    void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) Fail("mmap");
    ::close(fd);
    return static_cast<const char*>(at);
  }
};

// Calls visit(page) for `count` pages of the file, chosen by the reader's number alone.
template <typename Visit>
void VisitRandomPages(size_t file_bytes, uint64_t count, uint64_t reader, Visit visit) {
  std::mt19937_64 random(reader + 1);
  const uint64_t pages = (file_bytes + kPage - 1) / kPage;
  for (uint64_t i = 0; i < count; ++i) visit(random() % pages);
}

struct Tally {
  uint64_t bytes = 0, accesses = 0;
};

Tally ReadInOrder(const char* path) {
  const File file(path);
  std::vector<char> buffer(kPiece);
  Tally tally;
  ssize_t got = 0;
  while ((got = ::pread(file.fd, buffer.data(), buffer.size(), static_cast<off_t>(tally.bytes))) > 0) {
    tally.bytes += static_cast<uint64_t>(got);
    ++tally.accesses;
  }
  if (got < 0) Fail(path);
  return tally;
}

Tally TouchInOrder(const char* path) {
  File file(path);
  const volatile char* const at = file.Map();
  for (size_t i = 0; i < file.bytes; i += kPage) (void)at[i];
  return {file.bytes, (file.bytes + kPage - 1) / kPage};
}

Tally ReadRandomly(const char* path, uint64_t count, uint64_t reader) {
  const File file(path);
  std::vector<char> buffer(kPage);
  Tally tally;
  VisitRandomPages(file.bytes, count, reader, [&](uint64_t page) {
    const ssize_t got = ::pread(file.fd, buffer.data(), kPage, static_cast<off_t>(page * kPage));
    if (got <= 0) Fail(path);
    tally.bytes += static_cast<uint64_t>(got);
    ++tally.accesses;
  });
  return tally;
}

Tally TouchRandomly(const char* path, uint64_t count, uint64_t reader) {
  File file(path);
  const volatile char* const at = file.Map();
  if (::madvise(const_cast<char*>(at), file.bytes, MADV_RANDOM) != 0) Fail("madvise");
  VisitRandomPages(file.bytes, count, reader, [&](uint64_t page) { (void)at[page * kPage]; });
  return {count * kPage, count};
}

Tally Read(const std::string& access, const char* path, uint64_t count, uint64_t reader) {
  if (access == "read") return ReadInOrder(path);
  if (access == "mmap") return TouchInOrder(path);
  if (access == "random-pread") return ReadRandomly(path, count, reader);
  return TouchRandomly(path, count, reader);
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

uint64_t ParseCount(const char* text, uint64_t max) {
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0' || value == 0 || value > max) {
    std::fprintf(stderr, "bench_reader: %s: expected a number from 1 to %llu\n", text,
                 static_cast<unsigned long long>(max));
    std::_Exit(2);
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string access = argc > 1 ? argv[1] : "";
  const bool known = access == "read" || access == "mmap" || access == "random-pread" || access == "random-mmap";
  if (!known || argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: %s read|mmap|random-pread|random-mmap FILE READERS [COUNT]\n", argv[0]);
    return 2;
  }
  const char* const path = argv[2];
  const uint64_t readers = ParseCount(argv[3], kMaxReaders);
  const uint64_t count = argc > 4 ? ParseCount(argv[4], 1u << 30) : kDefaultCount;

  auto* const tallies = static_cast<Tally*>(
      ::mmap(nullptr, readers * sizeof(Tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  int ready[2], gate[2];
  if (tallies == MAP_FAILED || ::pipe2(ready, O_CLOEXEC) != 0 || ::pipe2(gate, O_CLOEXEC) != 0) Fail("starting");
  for (uint64_t reader = 0; reader < readers; ++reader) {
    const pid_t pid = ::fork();
    if (pid < 0) Fail("fork");
    if (pid > 0) continue;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(gate[1]);
    char byte = 'r';
    // The gate opens when the parent closes its end.
    if (::write(ready[1], &byte, 1) != 1 || ::read(gate[0], &byte, 1) != 0) std::_Exit(1);
    tallies[reader] = Read(access, path, count, reader);
    std::_Exit(0);
  }
  char byte = 0;
  for (uint64_t i = 0; i < readers; ++i)
    if (::read(ready[0], &byte, 1) != 1) Fail("waiting for the readers");
  const auto start = std::chrono::steady_clock::now();
  ::close(gate[1]);
  double cpu_s = 0;
  int64_t peak_kib = 0;
  for (uint64_t i = 0; i < readers; ++i) {
    int status = 0;
    rusage usage{};
    if (::wait4(-1, &status, 0, &usage) < 0) Fail("wait4");
    if (status != 0) {
      std::fprintf(stderr, "bench_reader: a reader failed (status %d)\n", status);
      return 1;
    }
    cpu_s += Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
    peak_kib = std::max<int64_t>(peak_kib, usage.ru_maxrss);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Tally all;
  for (uint64_t i = 0; i < readers; ++i) {
    all.bytes += tallies[i].bytes;
    all.accesses += tallies[i].accesses;
  }
  std::printf("{\"seconds\": %.6f, \"bytes\": %llu, \"accesses\": %llu, \"cpu_s\": %.6f, \"rss_bytes\": %lld}\n",
              seconds, static_cast<unsigned long long>(all.bytes), static_cast<unsigned long long>(all.accesses), cpu_s,
              static_cast<long long>(peak_kib) * 1024);
  return 0;
}
