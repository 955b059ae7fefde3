// bench_mount MODEL_DIR… : pushes the models into a temporary store, mounts it, and compares reading each model's
// largest file with the null server (the limit of FUSE here) and with the plain file in the page cache. Cold: nothing
// decoded yet, the store's own files in the page cache. Decoded: in the cache of the server, not of the kernel. All in
// one run, rounds interleaved, the best of each; what counts are the ratios.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/push.h"
#include "fuse/mount.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr int kRounds = 5;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "bench_mount: %s\n", why.c_str());
  std::exit(1);
}
void Check(const Status& status) {
  if (!status.ok()) Fail(status.ToString());
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void DropPages(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) Fail("dropping the pages of " + path);
  ::close(fd);
}

// GB/s of read(2) in pieces of 1 MiB.
double ReadRate(const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail("opening " + path);
  static std::vector<char> buffer(1 << 20);
  double bytes = 0;
  ssize_t n = 0;
  while ((n = ::read(fd, buffer.data(), buffer.size())) > 0) bytes += static_cast<double>(n);
  ::close(fd);
  if (n < 0 || bytes == 0) Fail("reading " + path);
  return bytes / SecondsSince(start) / 1e9;
}

// GB/s of touching every page of a shared mapping.
double MapRate(const std::string& path) {
  const auto start = std::chrono::steady_clock::now();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || ::fstat(fd, &st) != 0) Fail("opening " + path);
  const size_t bytes = static_cast<size_t>(st.st_size);
  void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  if (at == MAP_FAILED) Fail("mapping " + path);
  const volatile char* pages = static_cast<const char*>(at);
  for (size_t i = 0; i < bytes; i += 4096) (void)pages[i];
  ::munmap(at, bytes);
  return static_cast<double>(bytes) / SecondsSince(start) / 1e9;
}

// A child process and two pipes: it says when it is ready, and answers each byte it gets with one.
struct Child {
  pid_t pid = -1;
  int to = -1, from = -1;

  void Ask() const {
    char byte = 'x';
    if ((to >= 0 && ::write(to, &byte, 1) != 1) || ::read(from, &byte, 1) != 1) Fail("the server is gone");
  }
  void End() const {
    ::kill(pid, SIGTERM);
    ::close(from);
    if (to >= 0) ::close(to);
    ::waitpid(pid, nullptr, 0);
  }
};

Mount* signalled = nullptr;

Child ServeModels(const std::string& store, const std::string& mountpoint, const std::vector<std::string>& models) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) Fail("creating pipes");
  const pid_t pid = ::fork();
  if (pid != 0) {
    ::close(in[0]);
    ::close(out[1]);
    return {pid, in[1], out[0]};
  }
  ::close(in[1]);
  CatalogOptions options;
  options.create_if_missing = true;
  auto catalog = Catalog::Open(store, options);
  Check(catalog.status());
  for (const std::string& model : models) {
    auto source = SourceTree::Scan(model);
    Check(source.status());
    PushOptions push;
    push.name = source->default_name();
    JobControl job;
    Check(Push(**catalog, *source, push, job).status());
  }
  MountOptions at;
  at.mountpoint = mountpoint;
  auto mount = Mount::Start(**catalog, at);
  Check(mount.status());
  signalled = mount->get();
  ::signal(SIGTERM, [](int) { signalled->RequestStop(); });
  char byte = 'r';
  while (::write(out[1], &byte, 1) == 1 && ::read(in[0], &byte, 1) == 1) (*catalog)->reader().DropCaches();
  (void)(*mount)->Stop();
  std::_Exit(0);
}

Child ServeNull(const std::string& program, const std::string& mountpoint, uint64_t bytes) {
  int out[2];
  if (::pipe2(out, O_CLOEXEC) != 0) Fail("creating a pipe");
  const std::string mib = std::to_string(std::max<uint64_t>(bytes >> 20, 1));
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(out[1], 1);
    ::execl(program.c_str(), program.c_str(), mountpoint.c_str(), mib.c_str(), nullptr);
    std::_Exit(127);
  }
  ::close(out[1]);
  return {pid, -1, out[0]};
}

struct Rates {
  double read = 0, map = 0;
  void Take(const std::string& path) {
    DropPages(path);
    read = std::max(read, ReadRate(path));
  }
  void TakeMapped(const std::string& path) {
    DropPages(path);
    map = std::max(map, MapRate(path));
  }
};

void Print(const char* what, const Rates& rates, const Rates& null) {
  std::printf("  %-28s read %5.2f GB/s = %.2f x null   mmap %5.2f GB/s = %.2f x null\n", what, rates.read,
              rates.read / null.read, rates.map, rates.map / null.map);
}

void Compare(const std::string& source, const std::string& mounted, const Child& server, const std::string& program,
             const std::string& null_mount) {
  const Child null_server = ServeNull(program, null_mount, fs::file_size(source));
  null_server.Ask();
  Rates plain, null, cold, decoded;
  for (int round = 0; round < kRounds; ++round) {
    plain.read = std::max(plain.read, ReadRate(source));
    plain.map = std::max(plain.map, MapRate(source));
    null.Take(null_mount + "/data");
    null.TakeMapped(null_mount + "/data");
    server.Ask();
    cold.Take(mounted);
    decoded.Take(mounted);
    server.Ask();
    cold.TakeMapped(mounted);
    decoded.TakeMapped(mounted);
  }
  null_server.End();
  std::printf("%s, %.0f MB\n", source.c_str(), static_cast<double>(fs::file_size(source)) / 1e6);
  Print("null server", null, null);
  Print("mount, cold", cold, null);
  Print("mount, decoded", decoded, null);
  Print("plain file in page cache", plain, null);
}

int Main(int argc, char** argv) {
  if (argc < 2) Fail("usage: bench_mount MODEL_DIR…");
  std::string temp = fs::temp_directory_path().string() + "/modelstore-bench.XXXXXX";
  if (!::mkdtemp(temp.data())) Fail("creating a temporary folder");
  const std::string program = fs::canonical("/proc/self/exe").parent_path().string() + "/bench_null_fuse";
  std::vector<std::string> models(argv + 1, argv + argc);
  const std::string mountpoint = temp + "/mnt", null_mount = temp + "/null";
  fs::create_directories(null_mount);
  const Child server = ServeModels(temp + "/store", mountpoint, models);
  char ready = 0;
  if (::read(server.from, &ready, 1) != 1) Fail("the server did not start");
  for (const std::string& model : models) {
    fs::path largest;
    for (const auto& entry : fs::recursive_directory_iterator(model))
      if (entry.is_regular_file() && (largest.empty() || entry.file_size() > fs::file_size(largest)))
        largest = entry.path();
    const std::string name = SourceTree::Scan(model)->default_name();
    Compare(largest, mountpoint + "/" + name + "/" + fs::relative(largest, model).string(), server, program,
            null_mount);
  }
  server.End();
  fs::remove_all(temp);
  return 0;
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) { return modelstore::Main(argc, argv); }
