// bench_mount [--json FILE] [--rounds N] [--store DIR] [--only TEXT] BASE_DIR [FINETUNE_DIR…]: reads the largest file
// of each model through our mount, side by side with the null server (the limit of FUSE here) and the plain file.
//   bench_mount --probe read|mmap|pread|fault FILE [READERS]: one measurement of any file, in the same way.
//
// Every measurement of ours has a new server and mount, so that nothing is decoded; the kernel holds no page of the
// mounted file, but the store's own files are in the page cache. Rounds are interleaved, the null server's in between;
// a row tells the best round, and its share of the null server's best. MODELSTORE_CPU chooses the kernels; --only
// leaves out our rows whose name lacks the text.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/write/push.h"
#include "codec/kernels/cpu_target.h"
#include "fuse/mount.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPageBytes = 4096;
constexpr int kRandomReads = 2000;  // of a page, by each reader
constexpr uint64_t kSmallBudgetBytes = 256ull << 20;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "bench_mount: %s\n", why.c_str());
  std::exit(1);
}
void Check(const Status& status) {
  if (!status.ok()) Fail(status.ToString());
}

// ---- Readers

enum class Access { kRead, kMmap, kPread, kFault };
constexpr const char* kAccessNames[] = {"read", "mmap", "pread 4 KiB", "fault 4 KiB"};
bool IsRandom(Access access) { return access == Access::kPread || access == Access::kFault; }

// Reads all of the file (in pieces of 1 MiB, or touching every page of a shared mapping), or kRandomReads random pages
// of it.
void ReadOnce(const std::string& path, Access access, unsigned seed) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || ::fstat(fd, &st) != 0) Fail("opening " + path);
  const size_t bytes = static_cast<size_t>(st.st_size);
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<size_t> page(0, (bytes - 1) / kPageBytes);
  if (access == Access::kRead || access == Access::kPread) {
    std::vector<char> buffer(1 << 20);
    size_t got = 0;
    ssize_t n = 1;
    while (access == Access::kRead && n > 0) {
      n = ::read(fd, buffer.data(), buffer.size());
      if (n > 0) got += static_cast<size_t>(n);
    }
    for (int i = 0; access == Access::kPread && i < kRandomReads && n > 0; ++i)
      n = ::pread(fd, buffer.data(), kPageBytes, static_cast<off_t>(page(random) * kPageBytes));
    if (access == Access::kRead ? got != bytes : n <= 0) Fail("reading " + path);
  } else {
    void* at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) Fail("mapping " + path);
    const volatile char* pages = static_cast<const char*>(at);
    if (access == Access::kMmap) {
      for (size_t i = 0; i < bytes; i += kPageBytes) (void)pages[i];
    } else {
      if (::madvise(at, bytes, MADV_RANDOM) != 0) Fail("madvise on " + path);
      for (int i = 0; i < kRandomReads; ++i) (void)pages[page(random) * kPageBytes];
    }
    ::munmap(at, bytes);
  }
  ::close(fd);
}

// Seconds until `readers` processes, started together, have all read.
double ReadTogether(const std::string& path, Access access, int readers) {
  int ready[2], go[2];
  if (::pipe2(ready, O_CLOEXEC) != 0 || ::pipe2(go, O_CLOEXEC) != 0) Fail("creating pipes");
  std::vector<pid_t> children;
  char byte = 0;
  for (int i = 0; i < readers; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::close(go[1]);
      if (::write(ready[1], &byte, 1) != 1 || ::read(go[0], &byte, 1) < 0) std::_Exit(1);
      ReadOnce(path, access, static_cast<unsigned>(i) + 1);
      std::_Exit(0);
    }
    children.push_back(pid);
  }
  for (int i = 0; i < readers; ++i)
    if (::read(ready[0], &byte, 1) != 1) Fail("a reader did not start");
  const auto start = std::chrono::steady_clock::now();
  ::close(go[1]);  // all readers see the end of the pipe
  bool failed = false;
  for (const pid_t pid : children) {
    int status = 0;
    failed |= ::waitpid(pid, &status, 0) != pid || status != 0;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const int fd : {ready[0], ready[1], go[0]}) ::close(fd);
  if (failed) Fail("a reader of " + path + " failed");
  return seconds;
}

void DropPages(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) Fail("dropping the pages of " + path);
  ::close(fd);
}

// What a reading gives: GB/s together, or random pages a second together.
double Rate(const std::string& path, Access access, int readers, double seconds) {
  if (IsRandom(access)) return kRandomReads * readers / seconds;
  return static_cast<double>(fs::file_size(path)) * readers / seconds / 1e9;
}

// ---- Servers

// A server process. It writes a byte when it is ready; ours then answers each byte with its counts.
struct Server {
  pid_t pid = -1;
  int to = -1, from = -1;

  void AwaitReady() const {
    char byte = 0;
    if (::read(from, &byte, 1) != 1) Fail("a server did not start");
  }
  ReadStats Stats() const {
    ReadStats stats;
    if (::write(to, "s", 1) != 1 || ::read(from, &stats, sizeof(stats)) != sizeof(stats)) Fail("the server is gone");
    return stats;
  }
  double CpuSeconds() const {
    clockid_t clock;
    timespec t;
    if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &t) != 0) Fail("no CPU time of a server");
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
  }
  uint64_t PeakResidentBytes() const {
    std::ifstream status("/proc/" + std::to_string(pid) + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) << 10;
    Fail("no memory of a server");
  }
  void End() const {
    ::kill(pid, SIGTERM);
    for (const int fd : {from, to})
      if (fd >= 0) ::close(fd);
    ::waitpid(pid, nullptr, 0);
  }
};

Mount* signalled = nullptr;

void ReadIntoCache(ReadEngine& reader, const Sha256Digest& sha256) {
  const auto file = reader.OpenFileByHash(sha256);
  Check(file.status());
  std::vector<std::byte> buffer(1 << 20);
  for (uint64_t at = 0; at < (*file)->bytes(); at += buffer.size()) Check(reader.Read(*file, at, buffer).status());
}

// Serves the store until SIGTERM. `decoded`: a model whose blocks are decoded into the cache first ("": none).
Server ServeStore(const std::string& store, const std::string& mountpoint, uint64_t budget_bytes,
                  const std::string& decoded) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) Fail("creating pipes");
  const pid_t pid = ::fork();
  if (pid != 0) {
    ::close(in[0]);
    ::close(out[1]);
    const Server server{pid, in[1], out[0]};
    server.AwaitReady();
    return server;
  }
  ::close(in[1]);
  CatalogOptions options;
  options.memory_budget_bytes = budget_bytes;
  auto catalog = Catalog::Open(store, options);
  Check(catalog.status());
  ReadEngine& reader = (*catalog)->reader();
  if (!decoded.empty()) {
    const auto model = (*catalog)->FindModel(decoded);
    Check(model.status());
    for (const ModelFile& file : model->files) ReadIntoCache(reader, file.sha256);
  }
  MountOptions at;
  at.mountpoint = mountpoint;
  auto mount = Mount::Start(**catalog, at);
  Check(mount.status());
  signalled = mount->get();
  ::signal(SIGTERM, [](int) { signalled->RequestStop(); });
  char byte = 'r';
  if (::write(out[1], &byte, 1) == 1) {
    while (::read(in[0], &byte, 1) == 1) {
      const ReadStats stats = reader.stats();
      if (::write(out[1], &stats, sizeof(stats)) < 0) break;
    }
  }
  Check((*mount)->Stop());
  std::_Exit(0);
}

Server ServeNull(const std::string& mountpoint, uint64_t bytes) {
  const std::string program = fs::canonical("/proc/self/exe").parent_path().string() + "/bench_null_fuse";
  int out[2];
  if (::pipe2(out, O_CLOEXEC) != 0) Fail("creating a pipe");
  const std::string size = std::to_string(bytes);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(out[1], 1);
    ::execl(program.c_str(), program.c_str(), mountpoint.c_str(), size.c_str(), nullptr);
    std::_Exit(127);
  }
  ::close(out[1]);
  const Server server{pid, -1, out[0]};
  server.AwaitReady();
  return server;
}

// ---- Rows

struct Row {
  std::string server, what;
  Access access = Access::kRead;
  int readers = 1;
  // Takes one measurement.
  std::function<void(Row&)> measure;

  std::vector<double> rates;
  double rate = 0, seconds = 0, cpu_seconds = 0;  // of the best round
  uint64_t resident_bytes = 0, decoded_blocks = 0;

  // `of`: null for a file without a server.
  void Take(const std::string& path, const Server* of) {
    const double cpu_before = of ? of->CpuSeconds() : 0;
    const double took = ReadTogether(path, access, readers);
    rates.push_back(Rate(path, access, readers, took));
    if (of) resident_bytes = std::max(resident_bytes, of->PeakResidentBytes());
    if (rates.back() <= rate) return;
    rate = rates.back();
    seconds = took;
    cpu_seconds = of ? of->CpuSeconds() - cpu_before : 0;
  }
  double Median() const {
    std::vector<double> sorted = rates;
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

class Bench {
 public:
  Bench(std::string folder, std::string store, std::string only, std::vector<std::string> models, int rounds)
      : folder_(std::move(folder)),
        store_(std::move(store)),
        only_(std::move(only)),
        models_(std::move(models)),
        rounds_(rounds) {}

  void Run() {
    fs::create_directories(NullMount());
    fs::create_directories(OurMount());
    Store();
    for (const fs::path& entry : fs::recursive_directory_iterator(store_))
      if (fs::is_regular_file(entry)) std::ostringstream() << std::ifstream(entry).rdbuf();
    for (const std::string& model : models_) Compare(model);
  }

  void Print() const {
    std::printf("%s kernels, %d rounds, the best of each\n", std::string(CpuTargetName(CurrentCpuTarget())).c_str(),
                rounds_);
    std::printf("%-11s %-46s %-12s %7s %12s %7s %7s %7s %9s %8s\n", "server", "what", "access", "readers", "rate",
                "x null", "x plain", "cpu s", "resident", "blocks");
    for (const Row& row : rows_)
      std::printf("%-11s %-46s %-12s %7d %7.2f %-4s %7.2f %7.2f %7.3f %5.0f MiB %8llu\n", row.server.c_str(),
                  row.what.c_str(), Name(row), row.readers, row.rate, IsRandom(row.access) ? "/s" : "GB/s",
                  Share(row, "null"), Share(row, "plain"), row.cpu_seconds,
                  static_cast<double>(row.resident_bytes) / (1 << 20),
                  static_cast<unsigned long long>(row.decoded_blocks));
  }

  void WriteJson(const std::string& path) const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Row& row : rows_) {
      nlohmann::ordered_json item;
      item["server"] = row.server;
      item["what"] = row.what;
      item["access"] = Name(row);
      item["readers"] = row.readers;
      item[IsRandom(row.access) ? "per_s" : "gb_per_s"] = row.rate;
      item["median"] = row.Median();
      item["seconds"] = row.seconds;
      item["share_of_null"] = Share(row, "null");
      item["share_of_plain"] = Share(row, "plain");
      item["server_cpu_s"] = row.cpu_seconds;
      item["server_rss_bytes"] = row.resident_bytes;
      item["decoded_blocks"] = row.decoded_blocks;
      list.push_back(std::move(item));
    }
    std::ofstream out(path);
    out << list.dump(1) << '\n';
    if (!out.flush()) Fail("writing " + path);
  }

 private:
  std::string NullMount() const { return folder_ + "/null"; }
  std::string OurMount() const { return folder_ + "/mnt"; }
  static const char* Name(const Row& row) { return kAccessNames[static_cast<int>(row.access)]; }

  // Of the row of that server with the same access and readers, among those measured together.
  double Share(const Row& row, const std::string& server) const {
    const Row* of = nullptr;
    for (const Row& other : rows_) {
      if (other.server == server && other.access == row.access && other.readers == row.readers) of = &other;
      if (&other == &row && of != nullptr) break;
    }
    return of == nullptr ? 0 : row.rate / of->rate;
  }

  void Store() {
    if (fs::exists(store_)) return;
    const pid_t pid = ::fork();  // readers are forked from a process without threads
    if (pid == 0) {
      CatalogOptions options;
      options.create_if_missing = true;
      auto catalog = Catalog::Open(store_, options);
      Check(catalog.status());
      for (const std::string& model : models_) {
        auto source = SourceTree::Scan(model);
        Check(source.status());
        PushOptions push;
        push.name = source->default_name();
        JobControl job;
        Check(Push(**catalog, *source, push, job).status());
      }
      catalog->reset();
      std::_Exit(0);
    }
    int status = 0;
    if (::waitpid(pid, &status, 0) != pid || status != 0) Fail("pushing the models failed");
  }

  void Compare(const std::string& model) {
    fs::path source;
    for (const auto& entry : fs::recursive_directory_iterator(model))
      if (entry.is_regular_file() && (source.empty() || entry.file_size() > fs::file_size(source)))
        source = entry.path();
    const auto name_of = [](const std::string& path) { return SourceTree::Scan(path)->default_name(); };
    const std::string name = name_of(model);
    const std::string mounted = OurMount() + "/" + name + "/" + fs::relative(source, model).string();
    const std::string null_file = NullMount() + "/data";
    const std::string base = model == models_[0] ? "" : name_of(models_[0]);
    const Server null_server = ServeNull(NullMount(), fs::file_size(source));

    std::vector<Row> rows;
    const auto add = [&](const char* server, std::string what, Access access, int readers, auto measure) {
      if (std::string_view(server) == "modelstore" && what.find(only_) == std::string::npos) return;
      Row row;
      row.server = server;
      row.what = std::move(what);
      row.access = access;
      row.readers = readers;
      row.measure = measure;
      rows.push_back(std::move(row));
    };
    const auto plain = [&](Row& row) { row.Take(source, nullptr); };
    const auto null = [&](Row& row) {
      DropPages(null_file);
      row.Take(null_file, &null_server);
    };
    const auto ours = [&](uint64_t budget_bytes, std::string decoded, bool second) {
      return [&, budget_bytes, decoded = std::move(decoded), second](Row& row) {
        const Server server = ServeStore(store_, OurMount(), budget_bytes, decoded);
        const uint64_t blocks_before = server.Stats().decoded_blocks;
        DropPages(mounted);
        if (second) ReadTogether(mounted, Access::kRead, 1);
        row.Take(mounted, &server);
        row.decoded_blocks = server.Stats().decoded_blocks - blocks_before;
        server.End();
      };
    };
    const uint64_t budget = CatalogOptions().memory_budget_bytes;
    for (const Access access : {Access::kRead, Access::kMmap}) {
      add("plain", name, access, 1, plain);
      add("null", name, access, 1, null);
      add("modelstore", name + ", cold", access, 1, ours(budget, "", false));
      if (!base.empty()) add("modelstore", name + ", cold, base decoded", access, 1, ours(budget, base, false));
      add("modelstore", name + ", second time", access, 1, ours(budget, "", true));
    }
    for (const Access access : {Access::kPread, Access::kFault}) {
      add("null", name, access, 1, null);
      add("modelstore", name + ", cold", access, 1, ours(budget, "", false));
    }
    for (const int readers : {1, 4, 16}) {
      add("plain", name, Access::kMmap, readers, plain);
      add("null", name, Access::kMmap, readers, null);
      add("modelstore", name + ", cold, 256 MiB", Access::kMmap, readers, ours(kSmallBudgetBytes, "", false));
    }
    for (int round = 0; round < rounds_; ++round)
      for (Row& row : rows) row.measure(row);
    null_server.End();
    for (Row& row : rows) {
      row.measure = nullptr;
      rows_.push_back(std::move(row));
    }
  }

  const std::string folder_, store_, only_;
  const std::vector<std::string> models_;
  const int rounds_;
  std::vector<Row> rows_;
};

int Probe(const std::string& how, const std::string& file, int readers) {
  const char* const names[] = {"read", "mmap", "pread", "fault"};
  const auto found = std::find(std::begin(names), std::end(names), how);
  if (found == std::end(names) || readers < 1) Fail("unknown way to read: " + how);
  const auto access = static_cast<Access>(found - std::begin(names));
  DropPages(file);
  const double seconds = ReadTogether(file, access, readers);
  nlohmann::ordered_json item;
  item["access"] = kAccessNames[static_cast<int>(access)];
  item["readers"] = readers;
  item[IsRandom(access) ? "per_s" : "gb_per_s"] = Rate(file, access, readers, seconds);
  item["seconds"] = seconds;
  std::printf("%s\n", item.dump().c_str());
  return 0;
}

int Main(std::vector<std::string> args) {
  if (args.size() >= 3 && args[0] == "--probe")
    return Probe(args[1], args[2], args.size() > 3 ? std::atoi(args[3].c_str()) : 1);
  std::string json, store, only;
  int rounds = 5;
  while (args.size() >= 2 && args[0].starts_with("--")) {
    if (args[0] == "--json") {
      json = args[1];
    } else if (args[0] == "--store") {
      store = args[1];
    } else if (args[0] == "--only") {
      only = args[1];
    } else if (args[0] == "--rounds") {
      rounds = std::max(1, std::atoi(args[1].c_str()));
    } else {
      Fail("unknown option " + args[0]);
    }
    args.erase(args.begin(), args.begin() + 2);
  }
  if (args.empty()) Fail("usage: bench_mount [--json FILE] [--rounds N] [--store DIR] BASE_DIR [FINETUNE_DIR…]");
  std::string temp = fs::temp_directory_path().string() + "/modelstore-bench.XXXXXX";
  if (!::mkdtemp(temp.data())) Fail("creating a temporary folder");
  Bench bench(temp, store.empty() ? temp + "/store" : store, only, args, rounds);
  bench.Run();
  bench.Print();
  if (!json.empty()) bench.WriteJson(json);
  fs::remove_all(temp);
  return 0;
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) { return modelstore::Main({argv + 1, argv + argc}); }
