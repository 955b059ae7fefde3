#include "tests/mount/mount_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <sstream>
#include <utility>

#include "catalog/read/catalog.h"
#include "catalog/write/compact_model.h"
#include "catalog/write/maintain.h"
#include "catalog/write/push.h"
#include "fuse/mount.h"
#include "fuse/mount_table.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kServerAlarmSeconds = 200;  // less than the test's own limit

std::atomic<Mount*> signalled_mount{nullptr};
void RequestStop(int) { signalled_mount.load()->RequestStop(); }

// Lines over a pipe.
void WriteLine(int fd, const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return;  // the other side sees the end
    if (n > 0) done += static_cast<size_t>(n);
  }
}

std::string ReadLine(int fd) {
  std::string line;
  for (char c = 0;;) {
    const ssize_t n = ::read(fd, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return "the server is gone";
    if (c == '\n') return line;
    line.push_back(c);
  }
}

Status Corrupt(Catalog& catalog, const std::string& model, const std::string& path) {
  ASSIGN_OR_RETURN(const ModelRecord record, catalog.FindModel(model));
  for (const ModelFile& file : record.files) {
    if (file.path != path) continue;
    ASSIGN_OR_RETURN(const FileRef open, catalog.reader().OpenFileByHash(file.sha256));
    WriteBatch batch;
    for (const Extent& extent : open->record().extents) {
      if (extent.kind == Extent::Kind::kLiteral) continue;
      ASSIGN_OR_RETURN(const TensorRef tensor, catalog.reader().OpenTensorById(extent.tensor));
      for (uint32_t i = 0; i < tensor->record.block_count; ++i) {
        const std::string key = BlockKey(tensor->record.push, tensor->record.first_block + i);
        ASSIGN_OR_RETURN(const StoredValue value, catalog.store().Get(Family::kBlocks, key));
        Bytes bytes(value.bytes().begin(), value.bytes().end());
        bytes.back() ^= std::byte{1};
        batch.Put(Family::kBlocks, key, bytes);
      }
    }
    RETURN_IF_ERROR(catalog.store().Write(batch, Durability::kNone));
    catalog.reader().DropCaches();
    return OkStatus();
  }
  return NotFound("no file " + path);
}

struct ServerOptions {
  std::string store, mountpoint, sources;
  uint64_t memory_budget_bytes;
};

// One server process, from opening the store to the answer of "stop".
struct Server {
  const ServerOptions& options;
  int in, out;
  std::unique_ptr<Catalog> catalog = nullptr;
  std::mutex mutex = {};
  std::string accesses = "";               // guarded by mutex
  std::unique_ptr<Mount> mount = nullptr;  // goes first

  void Note(const AccessRecord& r) {
    std::ostringstream text;
    text << r.model << ' ' << r.path << ' ' << r.process << ' ' << r.pid << ' ' << r.uid << ' ' << r.file_bytes << ' '
         << r.read_bytes << ' ' << (r.reads > 0) << ' ' << r.errors << ' ' << (r.seconds > 0) << ';';
    const std::lock_guard lock(mutex);
    accesses += text.str();
  }

  Status PushSource(const std::string& name, uint32_t owner_uid, bool update) const {
    ASSIGN_OR_RETURN(const SourceTree tree, SourceTree::Scan(options.sources + "/" + name));
    PushOptions push;
    push.name = name;
    push.owner_uid = owner_uid;
    push.update = update;
    JobControl job;
    return Push(*catalog, tree, push, job).status();
  }

  Status Start() {
    CatalogOptions open;
    open.create_if_missing = true;
    open.memory_budget_bytes = options.memory_budget_bytes;
    ASSIGN_OR_RETURN(catalog, Catalog::Open(options.store, open));
    MountOptions at;
    at.mountpoint = options.mountpoint;
    at.on_access = [this](const AccessRecord& record) { Note(record); };
    ASSIGN_OR_RETURN(mount, Mount::Start(*catalog, at));
    signalled_mount = mount.get();
    ::signal(SIGTERM, RequestStop);
    return OkStatus();
  }

  Result<std::string> Answer(const std::string& request) {
    std::istringstream words(request);
    std::string what, first, second;
    words >> what >> first >> second;
    const uint32_t owner = second.empty() ? ::geteuid() : static_cast<uint32_t>(std::atoi(second.c_str()));
    JobControl job;
    if (what == "push" || what == "update") RETURN_IF_ERROR(PushSource(first, owner, what == "update"));
    if (what == "compact") {
      PushOptions compact;
      compact.name = first;
      compact.compact.emplace();
      compact.compact->max_drift = 1;
      RETURN_IF_ERROR(CompactModel(*catalog, compact, job).status());
    }
    if (what == "prune") {
      ASSIGN_OR_RETURN(const PruneReport report, Prune(*catalog, false, job));
      return std::to_string(report.tensors);
    }
    if (what == "rm") RETURN_IF_ERROR(Remove(*catalog, first, false, job).status());
    if (what == "rename") RETURN_IF_ERROR(Rename(*catalog, first, second, job));
    if (what == "corrupt") RETURN_IF_ERROR(Corrupt(*catalog, first, second));
    if (what == "drop") catalog->reader().DropCaches();
    if (what == "stop") RETURN_IF_ERROR(mount->Stop());
    if (what == "wait" || what == "ended") mount->Wait();
    if (what == "read_ahead") return std::to_string(mount->state().read_ahead_kb);
    if (what == "device") return std::to_string(mount->state().device);
    if (what == "peak") return std::to_string(catalog->reader().stats().peak_bytes);
    if (what == "accesses") {
      const std::lock_guard lock(mutex);
      return std::exchange(accesses, "");
    }
    if (what == "counts") {
      const MountStats counts = mount->stats();
      return std::to_string(counts.reads) + " " + std::to_string(counts.read_bytes) + " " +
             std::to_string(counts.errors) + " " + std::to_string(counts.open_files);
    }
    return std::string("ok");
  }

  int Run() {
    if (const Status status = Start(); !status.ok()) {
      WriteLine(out, status.ToString());
      return 1;
    }
    WriteLine(out, "ok");
    for (;;) {
      const std::string request = ReadLine(in);
      if (request == "the server is gone") break;  // so is the test
      const Result<std::string> answer = Answer(request);
      WriteLine(out, answer.ok() ? *answer : answer.status().ToString());
      if (request == "stop" || request == "wait") break;
    }
    return mount->Stop().ok() ? 0 : 1;
  }
};

// Why this machine cannot mount at all, "" when it can. Anything else that is wrong shows in the tests.
std::string CannotMount(const std::string& mountpoint) {
  int reasons[2];
  if (::pipe2(reasons, O_CLOEXEC) != 0) return "";
  (void)InChild([&] {
    auto catalog = Catalog::OverStore(NewMemoryStore(), "memory", CatalogOptions{});
    MountOptions at;
    at.mountpoint = mountpoint;
    const Status status = catalog.ok() ? Mount::Start(**catalog, at).status() : catalog.status();
    const bool impossible = status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kPermissionDenied;
    WriteLine(reasons[1], impossible ? status.ToString() : "");
    return 0;
  });
  ::close(reasons[1]);
  const std::string reason = ReadLine(reasons[0]);
  ::close(reasons[0]);
  return reason;
}

}  // namespace

int InChild(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::signal(SIGBUS, SIG_DFL);  // AddressSanitizer has a handler
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void MountTest::SetUp() {
  std::string pattern = fs::temp_directory_path().string() + "/modelstore-mount.XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr) << std::strerror(errno);
  root_ = fs::canonical(pattern);
  ASSERT_EQ(::chmod(root_.c_str(), 0755), 0);  // other users look through it
  fs::create_directories(mountpoint());
  fs::create_directories(root_ + "/sources");
  if (const std::string reason = CannotMount(mountpoint()); !reason.empty()) GTEST_SKIP() << reason;
}

void MountTest::TearDown() {
  if (server_ > 0) {
    ::kill(server_, SIGKILL);
    (void)WaitForServer();
  }
  for (const int fd : {to_server_, from_server_})
    if (fd >= 0) ::close(fd);
  if (root_.empty()) return;
  std::ifstream file("/proc/self/mountinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<MountEntry> entries = ParseMountInfo(text);
  std::reverse(entries.begin(), entries.end());  // what lies on top first
  for (const MountEntry& entry : entries)
    if (entry.mountpoint.starts_with(root_)) (void)DetachMount(entry.mountpoint, /*lazy=*/true);
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

std::string MountTest::ScratchFolder(const std::string& name) const {
  const std::string folder = root_ + "/" + name;
  fs::create_directories(folder);
  return folder;
}

std::string MountTest::SourceDir(const std::string& model) const { return root_ + "/sources/" + model; }

void MountTest::WriteSource(const std::string& model, const std::string& path, const std::string& bytes,
                            uint32_t mode) {
  const fs::path at = SourceDir(model) + "/" + path;
  fs::create_directories(at.parent_path());
  std::ofstream(at, std::ios::binary) << bytes;
  ASSERT_EQ(::chmod(at.c_str(), mode), 0);
  // Whole seconds and nanoseconds that a careless conversion would lose.
  const timespec times[2] = {{1'600'000'000, 123'456'789}, {1'600'000'000, 123'456'789}};
  ASSERT_EQ(::utimensat(AT_FDCWD, at.c_str(), times, 0), 0);
  sources_[model][path] = bytes;
}

std::string MountTest::Checkpoint(uint64_t seed, size_t elems, int tensors, uint64_t noise_seed, size_t rows) {
  std::string header = "{", body;
  std::mt19937_64 random(seed), noise(noise_seed);
  for (int t = 0; t < tensors; ++t) {
    if (t != 0) header += ",";
    header += "\"layer." + std::to_string(t) + ".weight\":{\"dtype\":\"BF16\",\"shape\":[";
    header += rows == 0 ? std::to_string(elems) : std::to_string(rows) + "," + std::to_string(elems / rows);
    header += "],\"data_offsets\":[" + std::to_string(body.size()) + "," + std::to_string(body.size() + 2 * elems);
    header += "]}";
    for (size_t i = 0; i < elems; ++i) {
      const uint64_t r = random();
      // Sign, an exponent near 2^-6 and mantissa: what weights look like to the codec.
      uint16_t value = static_cast<uint16_t>((r & 0x8000) | ((121 - (r >> 16 & 3)) << 7) | (r >> 20 & 0x7f));
      if (noise_seed != 0) value = static_cast<uint16_t>(value ^ (noise() & 1));
      body.push_back(static_cast<char>(value & 0xff));
      body.push_back(static_cast<char>(value >> 8));
    }
  }
  header += "}";
  while (header.size() % 8 != 0) header.push_back(' ');
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + body;
}

std::string MountTest::TryServe(const std::string& mountpoint, uint64_t memory_budget_bytes) {
  int requests[2], answers[2];
  if (::pipe2(requests, O_CLOEXEC) != 0 || ::pipe2(answers, O_CLOEXEC) != 0) return "no pipe";
  if (to_server_ >= 0) ::close(to_server_);
  if (from_server_ >= 0) ::close(from_server_);
  const ServerOptions options{store_dir(), mountpoint, root_ + "/sources", memory_budget_bytes};
  std::fflush(nullptr);
  server_ = ::fork();
  if (server_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(kServerAlarmSeconds);
    ::close(requests[1]);
    ::close(answers[0]);
    int code = 1;
    {
      Server server{options, requests[0], answers[1]};
      code = server.Run();
    }
    ::_exit(code);
  }
  ::close(requests[0]);
  ::close(answers[1]);
  to_server_ = requests[1];
  from_server_ = answers[0];
  const std::string answer = Answer();
  return answer == "ok" ? "" : answer;
}

void MountTest::Serve(uint64_t memory_budget_bytes) { ASSERT_EQ(TryServe(mountpoint(), memory_budget_bytes), ""); }

void MountTest::ServeTwoModels() {
  WriteSource("base", "model.safetensors", Checkpoint(1, 300'001, 4));
  WriteSource("base", "config.json", "{\"hidden_size\": 576}\n", 0640);
  WriteSource("base", "run.sh", "#!/bin/sh\n", 0755);
  WriteSource("base", "secret", "for the owner", 0600);
  WriteSource("base", "empty", "");
  WriteSource("base", "sub/dir/vocab.txt", std::string(100'000, 'v') + "end");
  WriteSource("team/ft", "model.safetensors", Checkpoint(1, 300'001, 4, 7));
  Serve();
  if (HasFatalFailure()) return;
  ASSERT_EQ(Ask("push base"), "ok");
  ASSERT_EQ(Ask("push team/ft"), "ok");
}

void MountTest::Send(const std::string& request) { WriteLine(to_server_, request); }
std::string MountTest::Answer() { return ReadLine(from_server_); }
std::string MountTest::Ask(const std::string& request) {
  Send(request);
  return Answer();
}

void MountTest::SignalServer(int signal) { ::kill(server_, signal); }

int MountTest::WaitForServer() {
  int status = 0;
  while (::waitpid(server_, &status, 0) < 0 && errno == EINTR) {
  }
  server_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string MountTest::ReadAll(const std::string& path, size_t piece) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "errno " + std::to_string(errno);
  std::string bytes;
  std::string buffer(piece, '\0');
  ssize_t n = 0;
  while ((n = ::read(fd, buffer.data(), piece)) > 0) bytes.append(buffer, 0, static_cast<size_t>(n));
  const int error = errno;
  ::close(fd);
  return n < 0 ? "errno " + std::to_string(error) : bytes;
}

void MountTest::DropPages(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0) << path << ": " << std::strerror(errno);
  EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(fd);
}

}  // namespace modelstore
