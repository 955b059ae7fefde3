// Verifying and pruning while others change the store or want them to stop.
#include <atomic>
#include <thread>

#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

// Passes everything on and calls `after_scan` behind each scan of a whole family, also of a snapshot. No scan may read
// blocks.
class InterruptedStore final : public KvStore {
 public:
  using Hook = std::function<void(Family family)>;
  explicit InterruptedStore(Hook after_scan) : after_scan_(std::move(after_scan)) {}

  Result<StoredValue> Get(Family family, std::string_view key) const override { return store_->Get(family, key); }
  std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
    return store_->MultiGet(family, keys);
  }
  Status Scan(Family family, std::string_view prefix,
              const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
    EXPECT_NE(family, Family::kBlocks);
    const Status status = store_->Scan(family, prefix, visit);
    if (prefix.empty()) after_scan_(family);
    return status;
  }
  Status ScanKeys(Family family, std::string_view prefix,
                  const std::function<Status(std::string_view)>& visit) const override {
    const Status status = store_->ScanKeys(family, prefix, visit);
    if (prefix.empty()) after_scan_(family);
    return status;
  }
  Status ScanPrefixes(Family family, size_t prefix_bytes,
                      const std::function<Status(std::string_view)>& visit) const override {
    return store_->ScanPrefixes(family, prefix_bytes, visit);
  }
  Result<std::unique_ptr<const KvReader>> Snapshot() const override {
    ASSIGN_OR_RETURN(std::unique_ptr<const KvReader> snapshot, store_->Snapshot());
    return std::unique_ptr<const KvReader>(std::make_unique<Interrupted>(std::move(snapshot), after_scan_));
  }
  Status Write(const WriteBatch& batch, Durability durability) override { return store_->Write(batch, durability); }
  Status Flush(std::span<const Family> families) override { return store_->Flush(families); }
  Result<BlockSizes> CountBlocks() const override { return store_->CountBlocks(); }
  Status CollectGarbage(const std::function<bool()>& cancelled) override { return store_->CollectGarbage(cancelled); }
  Status CollectBlocks(std::string_view begin, std::string_view end, const std::function<bool()>& cancelled) override {
    return store_->CollectBlocks(begin, end, cancelled);
  }
  Result<uint64_t> DiskBytes() const override { return store_->DiskBytes(); }
  Status VerifyChecksums(const std::function<bool()>& cancelled) override { return store_->VerifyChecksums(cancelled); }

 private:
  class Interrupted final : public KvReader {
   public:
    Interrupted(std::unique_ptr<const KvReader> reader, Hook after_scan)
        : reader_(std::move(reader)), after_scan_(std::move(after_scan)) {}
    Result<StoredValue> Get(Family family, std::string_view key) const override { return reader_->Get(family, key); }
    std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
      return reader_->MultiGet(family, keys);
    }
    Status Scan(Family family, std::string_view prefix,
                const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
      const Status status = reader_->Scan(family, prefix, visit);
      if (prefix.empty()) after_scan_(family);
      return status;
    }
    Status ScanKeys(Family family, std::string_view prefix,
                    const std::function<Status(std::string_view)>& visit) const override {
      const Status status = reader_->ScanKeys(family, prefix, visit);
      if (prefix.empty()) after_scan_(family);
      return status;
    }
    Status ScanPrefixes(Family family, size_t prefix_bytes,
                        const std::function<Status(std::string_view)>& visit) const override {
      return reader_->ScanPrefixes(family, prefix_bytes, visit);
    }

   private:
    const std::unique_ptr<const KvReader> reader_;
    const Hook after_scan_;
  };

  const std::unique_ptr<KvStore> store_ = NewMemoryStore();
  const Hook after_scan_;
};

class BesideTest : public ModelTest {
 protected:
  void ExpectNothingFails(Catalog& catalog) {
    const Result<VerifyReport> report = Verify(catalog, {}, job_);
    ASSERT_OK(report.status());
    for (const VerifyFailure& failure : report->failed)
      ADD_FAILURE() << failure.model << "/" << failure.file << ": " << failure.reason;
  }
};

// Whichever two families somebody publishes between: what the one says of the other is no damage.
TEST_F(BesideTest, APushBetweenTwoScansIsNoDamage) {
  const std::vector<TestTensor> base = SmallModel(1);
  const std::string base_folder = WriteModel("base", base);
  for (const Family family : {Family::kModels, Family::kTensors, Family::kEdges, Family::kSketches, Family::kFiles}) {
    std::function<void(Family)> interrupt;
    CatalogOptions options;
    options.memory_budget_bytes = 128 << 20;
    options.threads = 2;
    Result<std::unique_ptr<Catalog>> opened =
        Catalog::OverStore(std::make_unique<InterruptedStore>([&](Family scanned) {
                             if (interrupt) interrupt(scanned);
                           }),
                           "", options);
    ASSERT_OK(opened.status());
    Catalog& catalog = **opened;
    const auto push = [&](const std::string& folder, const std::string& name, bool update) {
      Result<SourceTree> source = SourceTree::Scan(folder);
      ASSERT_OK(source.status());
      PushOptions push_options;
      push_options.name = name;
      push_options.update = update;
      ASSERT_OK(Push(catalog, *source, push_options, job_).status());
    };
    push(base_folder, "base", false);
    push(WriteModel("updated", FinetunedModel(base, 10)), "updated", false);
    int pushes = 0;
    interrupt = [&](Family scanned) {
      if (scanned != family || pushes > 0) return;
      ++pushes;
      push(WriteModel("ft", FinetunedModel(base, 20)), "ft", false);
      push(WriteModel("updated", FinetunedModel(base, 30)), "updated", true);
    };
    ExpectNothingFails(catalog);
    EXPECT_EQ(pushes, 1) << FamilyName(family);
    const Result<StoreReport> report = MakeReport(catalog);
    ASSERT_OK(report.status());
    EXPECT_EQ(report->models.size(), 3u);
    ExpectNothingFails(catalog);
  }
}

// Reports count one moment too: all of a model or nothing of it.
TEST_F(BesideTest, AllIsWellBesideALoopOfChanges) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  const std::string kept = WriteModel("kept", FinetunedModel(base, 5));
  MustPush(kept);
  std::vector<std::string> folders;
  for (uint64_t i = 0; i < 3; ++i)
    folders.push_back(WriteModel("ft" + std::to_string(i), FinetunedModel(base, 100 * (i + 1))));
  std::atomic<bool> done{false};
  std::thread changer([&] {
    for (size_t i = 0; !done; ++i) {
      JobControl job;
      PushOptions options;
      options.name = "changing";
      options.update = true;
      EXPECT_OK(PushWith(folders[i % folders.size()], options, job).status());
      options.name = "passing";
      options.update = false;
      EXPECT_OK(PushWith(folders[(i + 1) % folders.size()], options, job).status());
      EXPECT_OK(Remove(catalog(), "passing", false, job).status());
      if (i % 3 == 2) {
        EXPECT_OK(Prune(catalog(), false, job).status());
      }
    }
  });
  for (int round = 0; round < 12; ++round) {
    ExpectNothingFails(catalog());
    const Result<StoreReport> report = MakeReport(catalog());
    EXPECT_OK(report.status());
    const Result<ModelDetail> detail = DescribeModel(catalog(), "kept");
    EXPECT_OK(detail.status());
  }
  done = true;
  changer.join();
  ExpectStored("kept", kept);
  ExpectNothingFails(catalog());
}

// A push that was killed leaves blocks. What they are is counted without reading them, and counting can be stopped.
TEST_F(BesideTest, PruneReadsNothingOfWhatItDeletesAndStops) {
  JobControl cancelled;
  Family cancel_after = Family::kBlocks;
  CatalogOptions options;
  options.memory_budget_bytes = 128 << 20;
  options.threads = 2;
  Result<std::unique_ptr<Catalog>> opened = Catalog::OverStore(std::make_unique<InterruptedStore>([&](Family scanned) {
                                                                 if (scanned == cancel_after) cancelled.Cancel();
                                                               }),
                                                               "", options);
  ASSERT_OK(opened.status());
  Catalog& catalog = **opened;
  Result<SourceTree> source = SourceTree::Scan(WriteModel("m", SmallModel(1)));
  ASSERT_OK(source.status());
  PushOptions push;
  push.name = "m";
  ASSERT_OK(Push(catalog, *source, push, job_).status());
  WriteBatch batch;
  for (uint32_t i = 0; i < 100; ++i) batch.Put(Family::kBlocks, BlockKey(77, i), SealBlock(NoiseBytes(i, 2000)));
  ASSERT_OK(catalog.store().Write(batch, Durability::kSync));

  cancel_after = Family::kModels;
  EXPECT_EQ(Prune(catalog, false, cancelled).status().code(), StatusCode::kCancelled);
  EXPECT_OK(catalog.store().Get(Family::kBlocks, BlockKey(77, 99)).status());
  cancel_after = Family::kBlocks;
  for (const bool dry_run : {true, false}) {
    const Result<PruneReport> pruned = Prune(catalog, dry_run, job_);
    ASSERT_OK(pruned.status());
    EXPECT_EQ(pruned->blocks, 100u);
    EXPECT_EQ(pruned->freed_bytes, 100 * (2000 + kBlockHeaderBytes + 12));
  }
  EXPECT_EQ(catalog.store().Get(Family::kBlocks, BlockKey(77, 99)).status().code(), StatusCode::kNotFound);
  ExpectNothingFails(catalog);
}

}  // namespace
}  // namespace modelstore
