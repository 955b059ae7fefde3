// Every allocation of a request fails once, and every one from it on: the request then fails with a code that says so
// or succeeds, nothing hangs or dies, the same request works afterwards, and the store is whole.
//
// A step is one request over a small store. It runs once to learn where it allocates; then, for each place, a child
// process runs it with that allocation failing. MODELSTORE_MEMORY_FAULTS=all takes every place with both kinds of
// failure, which takes minutes; without it those that follow on are a sample.
//
// The store is one in memory whose allocations are spared, and so are those of nlohmann::json: RocksDB, and a value of
// that library, whose destructor allocates, end the process where their memory runs out. The C library does so where a
// thread uses an object of its own for the first time.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "catalog/write/maintain.h"
#include "codec/support/guarded.h"
#include "daemon/handlers/handlers.h"
#include "tests/fault/memory/failing_memory.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

// A child that takes longer hangs.
constexpr unsigned kChildSeconds = 120;
// Of the places where all allocations fail from there on, as many as this are tried.
constexpr size_t kSample = 40;
// No request allocates in fewer places.
constexpr size_t kFewestTries = 40;

// Passes reads on to what stands in for the database, whose memory is not ours to fail.
template <typename Base>
class SparedReads : public Base {
 public:
  explicit SparedReads(const KvReader& reader) : reader_(reader) {}

  Result<StoredValue> Get(Family family, std::string_view key) const override {
    const SparedMemory spared;
    return reader_.Get(family, key);
  }
  std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
    const SparedMemory spared;
    return reader_.MultiGet(family, keys);
  }
  Status Scan(Family family, std::string_view prefix,
              const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
    const SparedMemory spared;
    return reader_.Scan(family, prefix, [&](std::string_view key, ByteSpan value) {
      const UnsparedMemory back;
      return visit(key, value);
    });
  }
  Status ScanKeys(Family family, std::string_view prefix,
                  const std::function<Status(std::string_view)>& visit) const override {
    const SparedMemory spared;
    return reader_.ScanKeys(family, prefix, [&](std::string_view key) {
      const UnsparedMemory back;
      return visit(key);
    });
  }
  Status ScanPrefixes(Family family, size_t prefix_bytes,
                      const std::function<Status(std::string_view)>& visit) const override {
    const SparedMemory spared;
    return reader_.ScanPrefixes(family, prefix_bytes, [&](std::string_view key) {
      const UnsparedMemory back;
      return visit(key);
    });
  }

 private:
  const KvReader& reader_;
};

class SparedSnapshot final : public SparedReads<KvReader> {
 public:
  explicit SparedSnapshot(std::unique_ptr<const KvReader> of) : SparedReads(*of), of_(std::move(of)) {}

 private:
  const std::unique_ptr<const KvReader> of_;
};

class SparedStore final : public SparedReads<KvStore> {
 public:
  explicit SparedStore(KvStore& store) : SparedReads(store), store_(store) {}

  Result<std::unique_ptr<const KvReader>> Snapshot() const override {
    const SparedMemory spared;
    ASSIGN_OR_RETURN(std::unique_ptr<const KvReader> of, store_.Snapshot());
    return std::unique_ptr<const KvReader>(std::make_unique<SparedSnapshot>(std::move(of)));
  }
  Status Write(const WriteBatch& batch, Durability durability) override {
    const SparedMemory spared;
    return store_.Write(batch, durability);
  }
  Status Flush(std::span<const Family> families) override { return store_.Flush(families); }
  Result<BlockSizes> CountBlocks() const override {
    const SparedMemory spared;
    return store_.CountBlocks();
  }
  Status CollectGarbage(const std::function<bool()>& cancelled) override { return store_.CollectGarbage(cancelled); }
  Status CollectBlocks(std::string_view begin, std::string_view end, const std::function<bool()>& cancelled) override {
    const SparedMemory spared;
    return store_.CollectBlocks(begin, end, cancelled);
  }
  Result<uint64_t> DiskBytes() const override {
    const SparedMemory spared;
    return store_.DiskBytes();
  }
  Status VerifyChecksums(const std::function<bool()>& cancelled) override { return store_.VerifyChecksums(cancelled); }

 private:
  KvStore& store_;
};

// With one thread loops run on their caller: the same allocations in every run.
std::unique_ptr<Catalog> OpenOver(KvStore& store, unsigned threads = 1) {
  CatalogOptions options;
  options.memory_budget_bytes = uint64_t{64 << 20} * threads * threads;
  options.threads = threads;
  auto catalog = Catalog::OverStore(std::make_unique<SparedStore>(store), "", options);
  if (!catalog.ok()) std::abort();
  return *std::move(catalog);
}

Status Ask(Catalog& catalog, std::string_view request, const std::string& parameters) {
  JobControl job;
  const Caller caller = Caller::InProcess();
  return FindHandler(request)->run(catalog, {.parameters = parameters, .job = &job, .caller = &caller}).status();
}

Status VerifyAll(Catalog& catalog) {
  JobControl job;
  ASSIGN_OR_RETURN(const VerifyReport report, Verify(catalog, {}, job));
  if (report.failed.empty()) return OkStatus();
  return Corruption(report.failed[0].model + "/" + report.failed[0].file + ": " + report.failed[0].reason);
}

// Reads all of a model's files from front to back, as the kernel asks for a mapped file; compares with `folder`.
Status ReadModel(Catalog& catalog, const std::string& name, const std::map<std::string, Bytes>& wanted) {
  return Guarded([&]() -> Status {
    constexpr size_t kPiece = 96 << 10;
    ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
    Bytes scratch(kPiece);
    for (const ModelFile& file : model.files) {
      ASSIGN_OR_RETURN(const FileRef opened, catalog.reader().OpenFileByHash(file.sha256));
      const Bytes& bytes = wanted.at(file.path);
      for (uint64_t at = 0; at < opened->bytes();) {
        std::vector<BlockRef> pieces;
        ASSIGN_OR_RETURN(const size_t got, catalog.reader().ReadPieces(opened, at, scratch, /*passing=*/true, &pieces));
        for (const BlockRef& piece : pieces) {
          if (std::memcmp(piece.bytes().data(), bytes.data() + at, piece.bytes().size()) != 0)
            return Corruption(name + "/" + file.path + " reads as other bytes");
          at += piece.bytes().size();
        }
        if (got == 0) return Corruption(name + "/" + file.path + " ends early");
      }
    }
    return OkStatus();
  });
}

// What a mount would show: the models' names and when they last changed.
std::map<std::string, int64_t> Listed(Catalog& catalog) {
  const Result<std::vector<ModelRecord>> models = catalog.ListModels();
  if (!models.ok()) std::abort();
  std::map<std::string, int64_t> listed;
  for (const ModelRecord& model : *models) listed[model.name] = model.created_ns;
  return listed;
}

class MemoryFaultTest : public ::testing::Test {
 protected:
  MemoryFaultTest() {
    std::string pattern = (fs::temp_directory_path() / "modelstore-memory-XXXXXX").string();
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    temp_ = pattern;
    const std::vector<TestTensor> base = {RandomTensor("embed", {512, 192}, 1), RandomTensor("norm", {64}, 2)};
    Write("base", base);
    Write("ft", FinetunedModel(base, 50));
    Write("other", FinetunedModel(base, 70));
    const std::unique_ptr<Catalog> catalog = OpenOver(*store_);
    for (const char* name : {"base", "ft"}) EXPECT_OK(Ask(*catalog, "push", PushOf(name)));
  }
  ~MemoryFaultTest() override {
    std::error_code ignored;
    fs::remove_all(temp_, ignored);
  }

  void Write(const std::string& model, const std::vector<TestTensor>& tensors) {
    files_[model]["model.safetensors"] = SafetensorsFile(tensors);
    files_[model]["config.json"] = NoiseBytes(model.size(), 3000);
    for (const auto& [path, bytes] : files_[model]) WritePath(temp_ + "/" + model + "/" + path, bytes);
  }
  std::string PushOf(const std::string& model, const std::string& more = "") const {
    return R"({"path": ")" + temp_ + "/" + model + R"(", "name": ")" + model + "\"" + more + "}";
  }

  using Step = std::function<Status(Catalog&)>;

  // `step` with each of its allocations failing; `again` must work afterwards.
  void Sweep(const Step& step, const Step& again = nullptr) {
    const char* const all = std::getenv("MODELSTORE_MEMORY_FAULTS");
    size_t tried = 0;
    for (const Threads threads : {Threads::kThis, Threads::kOthers}) {
      const std::vector<uint64_t> places = PlacesOf(step, threads);
      for (const bool only_one : {true, false}) {
        const size_t every = only_one || all != nullptr ? 1 : 1 + places.size() / kSample;
        for (size_t i = 0; i < places.size(); i += every) {
          Try(step, again ? again : step, {.threads = threads, .first = places[i], .only_one = only_one});
          if (HasFailure()) return;
          tried += 1;
        }
      }
      std::printf("%zu places of %s\n", places.size(), threads == Threads::kThis ? "the caller" : "other threads");
    }
    EXPECT_GE(tried, kFewestTries) << "what is to fail is not found";
  }

  // Learnt in a child: this process stays without threads, so that it can fork.
  std::vector<uint64_t> PlacesOf(const Step& step, Threads threads) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      const std::unique_ptr<Catalog> catalog = OpenOver(*store_, threads_);
      StartNoting(threads);
      const Status status = step(*catalog);
      const std::vector<uint64_t> places = StopNoting();
      if (!status.ok()) std::fprintf(stderr, "without a failure: %s\n", status.ToString().c_str());
      FILE* const out = fdopen(ends[1], "w");
      std::fwrite(places.data(), sizeof(uint64_t), places.size(), out);
      std::fclose(out);
      _exit(status.ok() ? 0 : 1);
    }
    close(ends[1]);
    std::vector<uint64_t> places;
    uint64_t place = 0;
    FILE* const in = fdopen(ends[0], "r");
    while (std::fread(&place, sizeof(place), 1, in) == 1) places.push_back(place);
    std::fclose(in);
    EXPECT_EQ(EndOf(child), 0);
    return places;
  }

  void Try(const Step& step, const Step& again, const MemoryFault& fault) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(kChildSeconds);
      _exit(RunChild(step, again, fault));
    }
    const int end = EndOf(child);
    EXPECT_EQ(end, 0) << (fault.threads == Threads::kThis ? "the caller's" : "another thread's") << " allocation "
                      << fault.first << (fault.only_one ? "" : " and all that follow") << ": "
                      << (end == 128 + SIGALRM ? "something hangs" : "the child ends with " + std::to_string(end));
  }

  int RunChild(const Step& step, const Step& again, const MemoryFault& fault) {
    std::unique_ptr<Catalog> catalog = OpenOver(*store_, threads_);
    signal(SIGABRT, [](int) {
      PrintFailedPlace();
      _exit(128 + SIGABRT);
    });
    signal(SIGSEGV, [](int) {
      PrintFailedPlace();
      _exit(128 + SIGSEGV);
    });
    signal(SIGALRM, [](int) {
      PrintFailedPlace();
      _exit(128 + SIGALRM);
    });
    // What a mount shows is as old as what it was last told of. The captures keep the function too large to be copied
    // without memory.
    const std::map<std::string, int64_t> before = Listed(*catalog);
    const auto told = std::make_shared<std::atomic<bool>>(false);
    catalog->SetOnChanged([told](const std::vector<std::string>&) { *told = true; });
    ArmMemory(fault);
    const Status status = Guarded([&] { return step(*catalog); });
    DisarmMemory();
    const auto complain = [&](const char* what, const Status& why) {
      std::fprintf(stderr, "%s: %s\n", what, why.ToString().c_str());
      if (MemoryHasFailed()) PrintFailedPlace();
      return 1;
    };
    if (!*told && before != Listed(*catalog)) return complain("what changed was not told", status);
    if (!status.ok() && status.code() != StatusCode::kResourceExhausted)
      return complain("the request fails otherwise than for lack of memory", status);
    if (!status.ok()) {
      if (const Status second = again(*catalog); !second.ok()) return complain("the next request fails", second);
    }
    if (const Status verified = VerifyAll(*catalog); !verified.ok())
      return complain("the store does not verify", verified);
    const Result<std::vector<ModelRecord>> models = catalog->ListModels();
    if (!models.ok()) return complain("the models cannot be listed", models.status());
    for (const ModelRecord& model : *models) {
      const auto wanted = files_.find(model.name);
      if (wanted == files_.end()) continue;
      if (const Status read = ReadModel(*catalog, model.name, wanted->second); !read.ok())
        return complain("a model cannot be read", read);
    }
    if (const Status pruned = Ask(*catalog, "prune", "{}"); !pruned.ok())
      return complain("the store cannot be pruned", pruned);
    catalog.reset();
    return 0;
  }

  static int EndOf(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  const std::unique_ptr<KvStore> store_ = NewMemoryStore();
  unsigned threads_ = 1;  // of the catalog's pool
  std::string temp_;
  std::map<std::string, std::map<std::string, Bytes>> files_;
};

TEST_F(MemoryFaultTest, Read) {
  const Step read = [this](Catalog& catalog) { return ReadModel(catalog, "ft", files_.at("ft")); };
  Sweep(read);
  threads_ = 3;
  Sweep(read);
}

// Who waits for a block that another reader decodes is told when that one runs out of memory.
TEST_F(MemoryFaultTest, ReadersOfTheSameBlocks) {
  Sweep([this](Catalog& catalog) {
    std::vector<std::thread> readers;
    std::vector<Status> ends(4);
    {
      const SparedMemory spared;
      for (Status& end : ends) readers.emplace_back([&] { end = ReadModel(catalog, "ft", files_.at("ft")); });
    }
    for (std::thread& reader : readers) reader.join();
    for (const Status& end : ends) RETURN_IF_ERROR(end);
    return OkStatus();
  });
}

TEST_F(MemoryFaultTest, Push) {
  const Step push = [this](Catalog& catalog) { return Ask(catalog, "push", PushOf("other")); };
  // Memory may run out when all is done but the answer.
  const Step again = [&](Catalog& catalog) { return catalog.FindModel("other").ok() ? OkStatus() : push(catalog); };
  Sweep(push, again);
  threads_ = 3;
  Sweep(push, again);
}

TEST_F(MemoryFaultTest, Update) {
  WritePath(temp_ + "/ft/config.json", NoiseBytes(9, 3000));
  files_["ft"].erase("config.json");
  const Step update = [this](Catalog& catalog) {
    RETURN_IF_ERROR(Ask(catalog, "push", PushOf("ft", R"(, "update": true)")));
    files_.erase("ft");  // what it is now, verify knows
    return OkStatus();
  };
  Sweep(update);
}

TEST_F(MemoryFaultTest, List) {
  Sweep([](Catalog& catalog) {
    RETURN_IF_ERROR(Ask(catalog, "ls", "{}"));
    RETURN_IF_ERROR(Ask(catalog, "show", R"({"name": "ft"})"));
    return Ask(catalog, "report", "{}");
  });
}

TEST_F(MemoryFaultTest, Verify) {
  Sweep(VerifyAll);
  threads_ = 3;
  Sweep(VerifyAll);
}

TEST_F(MemoryFaultTest, Export) {
  Sweep([this](Catalog& catalog) {
    const std::string to = temp_ + "/out" + std::to_string(getpid());
    std::error_code ignored;
    {
      const SparedMemory spared;
      fs::remove_all(to, ignored);
    }
    return Ask(catalog, "export", R"({"name": "ft", "dir": ")" + to + "\"}");
  });
}

TEST_F(MemoryFaultTest, Rename) {
  const Step rename = [](Catalog& catalog) { return Ask(catalog, "rename", R"({"from": "ft", "to": "ft2"})"); };
  Sweep(rename, [&](Catalog& catalog) { return catalog.FindModel("ft2").ok() ? OkStatus() : rename(catalog); });
}

TEST_F(MemoryFaultTest, RemoveAndPrune) {
  const auto remove = [](Catalog& catalog) {
    if (catalog.FindModel("ft").ok()) RETURN_IF_ERROR(Ask(catalog, "rm", R"({"name": "ft"})"));
    return Ask(catalog, "prune", "{}");
  };
  Sweep(remove);
}

}  // namespace
}  // namespace modelstore
