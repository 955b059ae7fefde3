#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "catalog/read/folder_times.h"
#include "catalog/write/folder_sink.h"
#include "catalog/write/store_usage.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class MaintainTest : public ModelTest {
 protected:
  void PushPair() {
    base_ = SmallModel(1);
    base_folder_ = WriteModel("base", base_);
    WriteSource("base", "config.json", AsBytes("{}"));
    finetune_folder_ = WriteModel("ft", FinetunedModel(base_, 50));
    WriteSource("ft", "config.json", AsBytes("{}"));
    base_report_ = MustPush(base_folder_);
    finetune_report_ = MustPush(finetune_folder_);
    ASSERT_EQ(finetune_report_.base, "base");
  }
  Result<ExportReport> ExportTo(const std::string& name, const std::string& dir) {
    return Export(catalog(), name, nullptr, *NewFolderSink(dir), job_);
  }
  Result<PruneReport> PruneAll(bool dry_run = false) { return Prune(catalog(), dry_run, job_); }
  // Of everything but the catalog's own record.
  uint64_t StoredBytes() {
    uint64_t bytes = 0;
    for (const Family family :
         {Family::kModels, Family::kFiles, Family::kTensors, Family::kBlocks, Family::kEdges, Family::kSketches}) {
      EXPECT_OK(catalog().store().Scan(family, "", [&](std::string_view key, ByteSpan value) {
        bytes += key.size() + value.size();
        return OkStatus();
      }));
    }
    return bytes;
  }

  std::vector<TestTensor> base_;
  std::string base_folder_, finetune_folder_;
  PushReport base_report_, finetune_report_;
};

TEST_F(MaintainTest, RefusalsDoNotNameWhatTheUserMayNotSee) {
  PushPair();
  MustPush(finetune_folder_, {"team/secret", PushOptions::Base::kAuto, ""});
  const auto refusal = [&](const std::set<std::string>& hidden) {
    const auto may_see = [&](const ModelRecord& model) { return !hidden.contains(model.name); };
    return std::string(Remove(catalog(), "base", true, job_, nullptr, may_see).status().message());
  };
  EXPECT_EQ(refusal({}), "'base' is the base of ft, team/secret: remove them first");
  EXPECT_EQ(refusal({"team/secret"}),
            "'base' is the base of ft and 1 model that you may not see: remove them first (root and their owners can)");
  EXPECT_EQ(refusal({"ft", "team/secret"}),
            "'base' is the base of 2 models that you may not see: remove them first (root and their owners can)");
  const Status taken = Rename(catalog(), "ft", "team", job_);
  EXPECT_EQ(taken.code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(taken.message().find("secret"), std::string::npos) << taken.message();
}

TEST_F(MaintainTest, BaseWithDependentsIsRefusedByName) {
  PushPair();
  const Result<RemoveReport> refused = Remove(catalog(), "base", false, job_);
  EXPECT_EQ(refused.status().code(), StatusCode::kHasDependents);
  EXPECT_NE(refused.status().message().find("ft"), std::string::npos) << refused.status().ToString();
  EXPECT_EQ(Remove(catalog(), "base", true, job_).status().code(), StatusCode::kHasDependents);
  EXPECT_EQ(Remove(catalog(), "nobody", false, job_).status().code(), StatusCode::kNotFound);
  // A second model that holds the same tensors keeps them alive: then the name can go.
  MustPush(base_folder_, {"base-copy", PushOptions::Base::kAuto, ""});
  EXPECT_OK(Remove(catalog(), "base", false, job_).status());
  ASSERT_OK(PruneAll().status());
  ExpectStored("ft", finetune_folder_);
  EXPECT_EQ(Remove(catalog(), "base-copy", false, job_).status().code(), StatusCode::kHasDependents);
  ExpectClean();
}

// Usage records name tensors by 8 bytes, in which a tensor of somebody else's can be made to agree.
TEST_F(MaintainTest, WhoMakesShortIdsAgreeKeepsNobodyFromRemoving) {
  PushPair();
  const TestTensor wanted = RandomTensor("w", {300, 300}, 7);
  MustPush(WriteModel("wanted", {wanted}));
  Hasher128 hasher = StartTensorHash(wanted.dtype, wanted.shape);
  hasher.Update(wanted.bytes);
  const ModelRecord finetune = *catalog().FindModel("ft");
  const auto file = std::ranges::find(finetune.files, "model.safetensors", &ModelFile::path);
  ASSERT_NE(file, finetune.files.end());
  const std::string key = UsageKey(file->sha256);
  UsageRecord usage = *ParseUsageRecord(catalog().store().Get(Family::kMeta, key)->bytes());
  usage.bases.push_back({ShortTensorId({hasher.Finish(), 0}), 100});
  SortBases(&usage);
  WriteBatch batch;
  batch.Put(Family::kMeta, key, Serialize(usage));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
  EXPECT_OK(Remove(catalog(), "wanted", false, job_).status());
  ASSERT_OK(PruneAll().status());
  ExpectStored("ft", finetune_folder_);
}

TEST_F(MaintainTest, RemoveAndPruneGiveBackWhatTheySay) {
  PushPair();
  const uint64_t before = StoredBytes();
  const Result<RemoveReport> dry = Remove(catalog(), "ft", true, job_);
  ASSERT_OK(dry.status());
  EXPECT_EQ(ModelNames().size(), 2u);
  const Result<RemoveReport> removed = Remove(catalog(), "ft", false, job_);
  ASSERT_OK(removed.status());
  EXPECT_EQ(removed->models, std::vector<std::string>{"ft"});
  EXPECT_EQ(removed->freed_bytes, dry->freed_bytes);
  EXPECT_EQ(removed->freed_bytes, finetune_report_.stored_bytes);
  EXPECT_EQ(ModelNames(), std::vector<std::string>{"base"});
  const Result<StoreReport> report = MakeReport(catalog());
  ASSERT_OK(report.status());
  EXPECT_EQ(report->stored_bytes, base_report_.stored_bytes);

  const Result<PruneReport> counted = PruneAll(true);
  ASSERT_OK(counted.status());
  EXPECT_EQ(counted->freed_bytes, report->prunable_bytes);
  const Result<PruneReport> pruned = PruneAll();
  ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->freed_bytes, counted->freed_bytes);
  EXPECT_EQ(pruned->blocks, counted->blocks);
  EXPECT_LT(pruned->disk_bytes_after, pruned->disk_bytes_before);
  EXPECT_EQ(StoredBytes(), before - finetune_report_.stored_bytes);
  EXPECT_EQ(PruneAll()->freed_bytes, 0u);
  ExpectStored("base", base_folder_);
  ExpectClean();

  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  ASSERT_OK(PruneAll().status());
  EXPECT_EQ(StoredBytes(), 0u);
  Reopen();
  EXPECT_TRUE(ModelNames().empty());
}

TEST_F(MaintainTest, RemovedModelIsNoBaseAndComesBackWhenPushedAgain) {
  PushPair();
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  // Not pruned: still stored, but nothing may be stored against it.
  const std::string folder = WriteModel("ft2", FinetunedModel(base_, 60));
  EXPECT_EQ(MustPush(folder).delta_bytes, 0u);
  const PushReport again = MustPush(base_folder_);
  EXPECT_EQ(again.identical_file_bytes, again.logical_bytes);
  ASSERT_OK(PruneAll().status());
  ExpectStored("base", base_folder_);
  ExpectStored("ft2", folder);
  ExpectClean();
}

TEST_F(MaintainTest, OpenFilesOutliveRemoveAndPrune) {
  PushPair();
  const Result<ModelRecord> model = catalog().FindModel("ft");
  ASSERT_OK(model.status());
  const auto file = std::find_if(model->files.begin(), model->files.end(),
                                 [](const ModelFile& f) { return f.path == "model.safetensors"; });
  Result<FileRef> open = catalog().reader().OpenFileByHash(file->sha256);
  ASSERT_OK(open.status());
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  ASSERT_OK(PruneAll().status());
  Bytes out((*open)->bytes());
  ASSERT_OK(catalog().reader().Read(*open, 0, out).status());
  EXPECT_TRUE(out == ReadPath(finetune_folder_ + "/model.safetensors"));
  *open = nullptr;
  ASSERT_OK(PruneAll().status());
  EXPECT_EQ(StoredBytes(), 0u);
}

TEST_F(MaintainTest, PruneFindsBlocksOfUnfinishedPushes) {
  PushPair();
  const Result<CatalogMeta> meta = catalog().Meta();
  ASSERT_OK(meta.status());
  WriteBatch batch;
  for (uint32_t i = 0; i < 5; ++i)
    batch.Put(Family::kBlocks, BlockKey(meta->next_push, i), SealBlock(NoiseBytes(i, 1000)));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  const Result<PruneReport> pruned = PruneAll();
  ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->blocks, 5u);
  EXPECT_EQ(pruned->freed_bytes, 5u * (1000 + kBlockHeaderBytes + 12));
  EXPECT_EQ(StoredBytes(), base_report_.stored_bytes + finetune_report_.stored_bytes);
  ExpectClean();
}

TEST_F(MaintainTest, RenameKeepsContentAndFamily) {
  PushPair();
  EXPECT_OK(Rename(catalog(), "base", "team/base", job_));
  EXPECT_EQ(Rename(catalog(), "base", "x", job_).code(), StatusCode::kNotFound);
  EXPECT_EQ(Rename(catalog(), "ft", "team/base", job_).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(Rename(catalog(), "ft", "team", job_).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(Rename(catalog(), "ft", "team/base/ft", job_).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(Rename(catalog(), "ft", "ft", job_).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(Rename(catalog(), "ft", "/x", job_).code(), StatusCode::kInvalidArgument);
  EXPECT_OK(Rename(catalog(), "ft", "ft/below", job_));  // only its own old name is in the way
  Reopen();
  EXPECT_EQ(ModelNames(), (std::vector<std::string>{"ft/below", "team/base"}));
  EXPECT_EQ(UsageOf("ft/below").base, "team/base");
  ExpectStored("team/base", base_folder_);
  ExpectStored("ft/below", finetune_folder_);
}

TEST_F(MaintainTest, ChangesAreAnnouncedByName) {
  std::vector<std::string> changed;
  catalog().SetOnChanged(
      [&](const std::vector<std::string>& names) { changed.insert(changed.end(), names.begin(), names.end()); });
  const std::string folder = WriteSource("m", "f", AsBytes("x"));
  MustPush(folder, {"a/b", PushOptions::Base::kAuto, ""});
  ASSERT_OK(Rename(catalog(), "a/b", "c", job_));
  ASSERT_OK(Remove(catalog(), "c", false, job_).status());
  EXPECT_EQ(changed, (std::vector<std::string>{"a/b", "a/b", "c", "c"}));
  catalog().SetOnChanged(nullptr);
}

TEST_F(MaintainTest, FoldersRememberWhenAModelLeftThem) {
  const std::string folder = WriteSource("m", "f", AsBytes("x"));
  for (const char* name : {"a/b/x", "a/b/y", "a/z", "m"}) MustPush(folder, {name, PushOptions::Base::kAuto, ""});
  const auto times = [&] {
    const auto listed = ListFolderTimes(catalog().store());
    EXPECT_OK(listed.status());
    return *listed;
  };
  EXPECT_TRUE(times().empty());  // what is published has its own time
  ASSERT_OK(Remove(catalog(), "a/b/x", false, job_).status());
  const auto removed = times();
  ASSERT_EQ(removed.size(), 3u);
  for (const char* path : {"", "a", "a/b"}) {
    ASSERT_TRUE(removed.contains(path)) << path;
    EXPECT_GT(removed.at(path), catalog().FindModel("m")->created_ns) << path;
    EXPECT_EQ(*FolderTime(catalog().store(), path), removed.at(path)) << path;
  }
  EXPECT_EQ(*FolderTime(catalog().store(), "m"), 0);
  ASSERT_OK(Rename(catalog(), "m", "n/m", job_));
  Reopen();
  const auto renamed = times();
  EXPECT_GT(renamed.at(""), removed.at(""));
  EXPECT_GT(renamed.at("n"), removed.at(""));
  EXPECT_EQ(renamed.at("a"), removed.at("a"));
  // A folder without models is none.
  ASSERT_OK(Remove(catalog(), "a/b/y", false, job_).status());
  EXPECT_FALSE(times().contains("a/b"));
  EXPECT_GT(times().at("a"), removed.at("a"));
  ASSERT_OK(Rename(catalog(), "a/z", "a", job_));
  EXPECT_FALSE(times().contains("a"));
  ASSERT_OK(Rename(catalog(), "a", "a/z", job_));
  EXPECT_TRUE(times().contains("a"));
  ExpectClean();
}

TEST_F(MaintainTest, AnUpdateIsNewerThanWhatItReplaces) {
  const std::string folder = WriteSource("m", "f", AsBytes("x"));
  MustPush(folder);
  // As after a clock that was ahead.
  ModelRecord model = *catalog().FindModel("m");
  CatalogMeta meta = *catalog().Meta();
  meta.model_digest ^= ModelDigest(model);
  model.created_ns += int64_t{1} << 60;
  meta.model_digest ^= ModelDigest(model);
  WriteBatch batch;
  batch.Put(Family::kModels, "m", Serialize(model));
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  WriteSource("m", "f", AsBytes("y"));
  PushOptions update;
  update.name = "m";
  update.update = true;
  MustPush(folder, update);
  EXPECT_GT(catalog().FindModel("m")->created_ns, model.created_ns);
}

TEST_F(MaintainTest, VerifyNamesTheFileThatIsDamaged) {
  PushPair();
  const Result<VerifyReport> good = Verify(catalog(), {}, job_);
  ASSERT_OK(good.status());
  EXPECT_EQ(good->checked, 4u);
  EXPECT_EQ(good->checked_bytes, base_report_.logical_bytes + finetune_report_.logical_bytes);
  EXPECT_TRUE(good->failed.empty());
  EXPECT_EQ(Verify(catalog(), {"nobody"}, job_).status().code(), StatusCode::kNotFound);

  // One block of the finetune with other bytes under a valid checksum.
  std::string key;
  Bytes value;
  const Result<ModelRecord> model = catalog().FindModel("ft");
  ASSERT_OK(catalog().store().Scan(Family::kBlocks, BlockKeyPrefix(model->push), [&](std::string_view k, ByteSpan v) {
    const Result<ByteSpan> coded = OpenBlock(v);
    EXPECT_OK(coded.status());
    if (coded->size() > value.size()) {
      key = k;
      value.assign(coded->begin(), coded->end());
    }
    return OkStatus();
  }));
  value[value.size() / 2] ^= std::byte{1};
  WriteBatch batch;
  batch.Put(Family::kBlocks, key, SealBlock(value));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  Reopen();
  const Result<VerifyReport> bad = Verify(catalog(), {}, job_);
  ASSERT_OK(bad.status());
  ASSERT_EQ(bad->failed.size(), 1u);
  EXPECT_EQ(bad->failed[0].model, "ft");
  EXPECT_EQ(bad->failed[0].file, "model.safetensors");
  EXPECT_FALSE(bad->failed[0].reason.empty());
  EXPECT_TRUE(Verify(catalog(), {"base"}, job_)->failed.empty());
  // Export refuses to hand it out.
  EXPECT_FALSE(ExportTo("ft", temp() + "/out").ok());
  EXPECT_FALSE(fs::exists(temp() + "/out/model.safetensors"));
}

// Flips a bit in the largest block of what a push wrote.
void DamageLargestBlock(Catalog& catalog, PushId push) {
  std::string key;
  Bytes value;
  ASSERT_OK(catalog.store().Scan(Family::kBlocks, BlockKeyPrefix(push), [&](std::string_view k, ByteSpan v) {
    const Result<ByteSpan> coded = OpenBlock(v);
    EXPECT_OK(coded.status());
    if (coded->size() > value.size()) {
      key = k;
      value.assign(coded->begin(), coded->end());
    }
    return OkStatus();
  }));
  ASSERT_FALSE(value.empty());
  Bytes sealed = SealBlock(value);
  sealed.back() ^= std::byte{1};
  WriteBatch batch;
  batch.Put(Family::kBlocks, key, sealed);
  ASSERT_OK(catalog.store().Write(batch, Durability::kSync));
}

void DamageLargestBlock(Catalog& catalog, const std::string& name) {
  const Result<ModelRecord> model = catalog.FindModel(name);
  ASSERT_OK(model.status());
  DamageLargestBlock(catalog, model->push);
}

TEST_F(MaintainTest, PushReadsAFileThatIsStoredInAnotherLayout) {
  const Bytes bytes = SafetensorsFile(SmallModel(1));
  const std::string plain = WriteSource("plain", "x.bin", bytes);
  const std::string laid_out = WriteSource("m", "x.safetensors", bytes);
  MustPush(plain);
  MustPush(laid_out, {"good", PushOptions::Base::kAuto, ""});
  DamageLargestBlock(catalog(), "plain");
  Reopen();
  MustPush(laid_out, {"again", PushOptions::Base::kAuto, ""});
  ExpectStored("again", laid_out);
  ExpectStored("plain", plain);
  ASSERT_OK(PruneAll().status());  // the damaged tensor, which no file needs any more
  ExpectClean();
}

TEST_F(MaintainTest, PushingAgainMendsDamage) {
  PushPair();
  DamageLargestBlock(catalog(), "base");
  Reopen();
  ASSERT_FALSE(Verify(catalog(), {"base"}, job_)->failed.empty());
  MustPush(base_folder_, {"base-again", PushOptions::Base::kAuto, ""});
  ExpectStored("base-again", base_folder_);
  ExpectStored("base", base_folder_);
  EXPECT_TRUE(Verify(catalog(), {"base", "base-again"}, job_)->failed.empty());
}

TEST_F(MaintainTest, AMendedFileIsReadableWhileTheDamagedOneIsOpen) {
  PushPair();
  DamageLargestBlock(catalog(), "base");
  Reopen();
  const Result<ModelRecord> model = catalog().FindModel("base");
  ASSERT_OK(model.status());
  const auto file = std::find_if(model->files.begin(), model->files.end(),
                                 [](const ModelFile& f) { return f.path == "model.safetensors"; });
  const auto read = [&](const FileRef& open) {
    Bytes out(open->bytes());
    return catalog().reader().Read(open, 0, out).status();
  };
  Result<FileRef> damaged = catalog().reader().OpenFileByHash(file->sha256);
  ASSERT_OK(damaged.status());
  EXPECT_EQ(read(*damaged).code(), StatusCode::kCorruption);
  MustPush(base_folder_, {"again", PushOptions::Base::kAuto, ""});
  Result<FileRef> mended = catalog().reader().OpenFileByHash(file->sha256);
  ASSERT_OK(mended.status());
  EXPECT_OK(read(*mended));
  ExpectStored("base", base_folder_);
  // What the damaged one needs is still pinned.
  const std::vector<TensorId> pinned = catalog().reader().PinnedTensors();
  for (const FileRef& open : {*damaged, *mended}) {
    for (const Extent& extent : open->record().extents) {
      if (extent.kind == Extent::Kind::kLiteral) continue;
      EXPECT_TRUE(std::find(pinned.begin(), pinned.end(), extent.tensor) != pinned.end());
    }
  }
  mended = damaged = Result<FileRef>(FileRef());
  EXPECT_TRUE(catalog().reader().PinnedTensors().empty());
}

TEST_F(MaintainTest, VerifyReadsTheStoreNotTheCache) {
  PushPair();
  ExpectStored("base", base_folder_);
  DamageLargestBlock(catalog(), "base");
  EXPECT_FALSE(Verify(catalog(), {"base"}, job_)->failed.empty());
}

TEST_F(MaintainTest, VerifyReadsTheBasesOfAFinetuneFromTheStoreToo) {
  PushPair();
  ExpectStored("ft", finetune_folder_);  // leaves blocks of the base in the cache
  DamageLargestBlock(catalog(), "base");
  const Result<VerifyReport> report = Verify(catalog(), {"ft"}, job_);
  ASSERT_OK(report.status());
  ASSERT_EQ(report->failed.size(), 1u);
  EXPECT_EQ(report->failed[0].model, "ft");
  EXPECT_EQ(report->failed[0].file, "model.safetensors");
}

TEST_F(MaintainTest, VerifyReadsBasesThatNoModelListsAnyMore) {
  PushPair();
  const PushId old_push = catalog().FindModel("base")->push;
  PushOptions update;
  update.name = "base";
  update.update = true;
  MustPush(WriteModel("other", SmallModel(9)), update);
  ExpectClean();
  ExpectStored("ft", finetune_folder_);
  DamageLargestBlock(catalog(), old_push);
  const Result<VerifyReport> report = Verify(catalog(), {}, job_);
  ASSERT_OK(report.status());
  ASSERT_FALSE(report->failed.empty());
  for (const VerifyFailure& failure : report->failed) EXPECT_EQ(failure.model, "ft") << failure.reason;
}

TEST_F(MaintainTest, VerifyReadsWhatNoModelNeeds) {
  PushPair();
  const PushId push = catalog().FindModel("ft")->push;
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  ExpectClean();
  DamageLargestBlock(catalog(), push);
  EXPECT_TRUE(Verify(catalog(), {"base"}, job_)->failed.empty());
  const Result<VerifyReport> report = Verify(catalog(), {}, job_);
  ASSERT_OK(report.status());
  ASSERT_EQ(report->failed.size(), 1u);
  EXPECT_EQ(report->failed[0].model, "");
  EXPECT_NE(report->failed[0].reason.find("prune"), std::string::npos) << report->failed[0].reason;
  ASSERT_OK(PruneAll().status());
  ExpectClean();
}

TEST_F(MaintainTest, VerifyComparesEdgesAndSketchesWithTensors) {
  PushPair();
  const auto first_key = [&](Family family) {
    std::string first;
    EXPECT_OK(catalog().store().ScanKeys(family, "", [&](std::string_view key) {
      if (first.empty()) first = key;
      return OkStatus();
    }));
    return first;
  };
  const std::string edge = first_key(Family::kEdges), sketch = first_key(Family::kSketches);
  const auto failures = [&](const std::function<void(WriteBatch&)>& change) {
    WriteBatch batch;
    change(batch);
    EXPECT_OK(catalog().store().Write(batch, Durability::kSync));
    const Result<VerifyReport> report = Verify(catalog(), {}, job_);
    EXPECT_OK(report.status());
    return report.ok() ? report->failed.size() : 0;
  };
  EXPECT_EQ(failures([&](WriteBatch& batch) { batch.Delete(Family::kEdges, edge); }), 1u);
  EXPECT_EQ(failures([&](WriteBatch& batch) {
              batch.Put(Family::kEdges, edge, {});
              batch.Put(Family::kEdges, edge.substr(18) + edge.substr(0, 18), {});
            }),
            1u);
  EXPECT_EQ(failures([&](WriteBatch& batch) {
              batch.Delete(Family::kEdges, edge.substr(18) + edge.substr(0, 18));
              batch.Put(Family::kSketches, sketch, AsBytes("no sketch"));
            }),
            1u);
}

TEST_F(MaintainTest, PruneDeletesDependentsBeforeTheirBases) {
  // Enough small tensors that the deletions take several batches.
  std::vector<TestTensor> base, finetune;
  for (uint64_t i = 0; i < 1200; ++i) {
    base.push_back(RandomTensor("t" + std::to_string(i), {512}, i));
    finetune.push_back(Finetuned(base.back(), 10'000 + i));
  }
  // Stops after the first batch of files and the first of tensors.
  int batches = 0;
  JobControl job;
  bool armed = false;
  OpenInMemory([&](uint64_t) {
    if (armed && ++batches > 1) job.Cancel();
    return OkStatus();
  });
  MustPush(WriteModel("base", base));
  const std::string folder = WriteModel("ft", finetune);
  ASSERT_EQ(MustPush(folder).base, "base");
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  armed = true;
  EXPECT_EQ(Prune(catalog(), false, job).status().code(), StatusCode::kCancelled);
  std::set<TensorId> left;
  std::vector<TensorId> bases;
  ASSERT_OK(catalog().store().Scan(Family::kTensors, "", [&](std::string_view key, ByteSpan value) -> Status {
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(key));
    ASSIGN_OR_RETURN(const TensorRecord record, ParseTensorRecord(value));
    left.insert(id);
    for (const ViewSegment& segment : record.ViewOf(InputRole::kBase)) {
      if (segment.kind == ViewSegment::Kind::kIdentity) bases.push_back(segment.base);
    }
    return OkStatus();
  }));
  EXPECT_FALSE(left.empty());
  EXPECT_LT(left.size(), 2400u);
  for (const TensorId& id : bases) EXPECT_TRUE(left.contains(id));
  MustPush(folder);
  ExpectStored("ft", folder);
}

TEST_F(MaintainTest, ACancelledPruneForgetsTheRecordsThatItDeleted) {
  std::vector<TestTensor> tensors;
  for (uint64_t i = 0; i < 2400; ++i) tensors.push_back(RandomTensor("t" + std::to_string(i), {512}, i));
  const std::string folder = WriteModel("m", tensors);
  JobControl job;
  int batches = 0;
  bool armed = false;
  OpenInMemory([&](uint64_t) {
    if (armed && ++batches > 1) job.Cancel();
    return OkStatus();
  });
  MustPush(folder);
  catalog().reader().DropCaches();
  // Parses all records, and leaves no blocks in the cache that would hide that a record is out of date.
  ASSERT_OK(catalog().store().ScanKeys(Family::kTensors, "", [&](std::string_view key) -> Status {
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(key));
    return catalog().reader().OpenTensorById(id).status();
  }));
  const uint64_t stored = CountKeys(Family::kTensors);
  ASSERT_OK(Remove(catalog(), "m", false, job_).status());
  armed = true;
  EXPECT_EQ(Prune(catalog(), false, job).status().code(), StatusCode::kCancelled);
  armed = false;
  const uint64_t left = CountKeys(Family::kTensors);
  EXPECT_GT(left, 0u);
  EXPECT_LT(left, stored);
  // The same content, hence the same tensors, in blocks of another push.
  MustPush(folder);
  ExpectStored("m", folder);
  ExpectClean();
}

TEST_F(MaintainTest, ChangesAreAnnouncedOutsideAllLocks) {
  bool free = true;
  catalog().SetOnChanged([&](const std::vector<std::string>&) {
    JobControl cancelled;
    cancelled.Cancel();
    free = free && catalog().collect_gate().EnterAlone(cancelled).ok();
  });
  MustPush(WriteSource("m", "f", AsBytes("x")), {"a", PushOptions::Base::kAuto, ""});
  ASSERT_OK(Rename(catalog(), "a", "c", job_));
  ASSERT_OK(Remove(catalog(), "c", false, job_).status());
  EXPECT_TRUE(free);
  catalog().SetOnChanged(nullptr);
}

TEST_F(MaintainTest, VerifyReportsMissingRecords) {
  PushPair();
  const Result<ModelRecord> model = catalog().FindModel("base");
  WriteBatch batch;
  for (const ModelFile& file : model->files) batch.Delete(Family::kFiles, FileKey(file.sha256));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  Reopen();
  const Result<VerifyReport> report = Verify(catalog(), {}, job_);
  ASSERT_OK(report.status());
  // config.json is shared by both models.
  ASSERT_EQ(report->failed.size(), 3u);
  EXPECT_NE(report->failed[0].reason.find("missing"), std::string::npos) << report->failed[0].reason;
}

TEST_F(MaintainTest, ExportWritesPlainFilesAgain) {
  PushPair();
  WriteSource("deep", "a/b/c.txt", AsBytes("deep"));
  const std::string deep = WriteSource("deep", "empty", {});
  ASSERT_EQ(chmod((deep + "/a/b/c.txt").c_str(), 0640), 0);
  MustPush(deep);
  const std::string out = temp() + "/out/of/here";
  const Result<ExportReport> report = ExportTo("deep", out);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->files, 2u);
  EXPECT_EQ(report->bytes, 4u);
  EXPECT_TRUE(ReadPath(out + "/a/b/c.txt") == ReadPath(deep + "/a/b/c.txt"));
  struct stat source, copy;
  ASSERT_EQ(stat((deep + "/a/b/c.txt").c_str(), &source), 0);
  ASSERT_EQ(stat((out + "/a/b/c.txt").c_str(), &copy), 0);
  EXPECT_EQ(copy.st_mode & 07777, 0640u);
  EXPECT_EQ(copy.st_mtim.tv_sec, source.st_mtim.tv_sec);
  EXPECT_EQ(copy.st_mtim.tv_nsec, source.st_mtim.tv_nsec);
  ASSERT_OK(ExportTo("ft", out).status());
  EXPECT_TRUE(ReadPath(out + "/model.safetensors") == ReadPath(finetune_folder_ + "/model.safetensors"));

  // What exists is left alone, and nothing else is written then.
  fs::remove(out + "/config.json");
  WritePath(out + "/model.safetensors", AsBytes("mine"));
  EXPECT_EQ(ExportTo("ft", out).status().code(), StatusCode::kAlreadyExists);
  EXPECT_FALSE(fs::exists(out + "/config.json"));
  EXPECT_TRUE(ReadPath(out + "/model.safetensors").size() == 4);
  EXPECT_EQ(ExportTo("nobody", out).status().code(), StatusCode::kNotFound);
}

// Removes and prunes the model as soon as its first file begins, which must not wait for the export.
class PruningSink final : public ExportSink {
 public:
  PruningSink(Catalog* catalog, JobControl* job) : catalog_(catalog), job_(job) {}
  Status Begin(const std::vector<ModelFile>& files) override {
    contents.resize(files.size());
    return OkStatus();
  }
  Status BeginFile(size_t index) override {
    at_ = index;
    if (index != 0) return OkStatus();
    RETURN_IF_ERROR(Remove(*catalog_, "ft", false, *job_).status());
    RETURN_IF_ERROR(Remove(*catalog_, "base", false, *job_).status());
    RETURN_IF_ERROR(Prune(*catalog_, false, *job_).status());
    catalog_->reader().DropCaches();
    return OkStatus();
  }
  Status Write(ByteSpan bytes) override {
    contents[at_].insert(contents[at_].end(), bytes.begin(), bytes.end());
    return OkStatus();
  }
  Status EndFile() override { return OkStatus(); }

  std::vector<Bytes> contents;

 private:
  Catalog* const catalog_;
  JobControl* const job_;
  size_t at_ = 0;
};

TEST_F(MaintainTest, ExportGoesOnWhileItsModelIsRemovedAndPruned) {
  PushPair();
  PruningSink sink(&catalog(), &job_);
  ASSERT_OK(Export(catalog(), "ft", nullptr, sink, job_).status());
  ASSERT_FALSE(sink.contents.empty());
  EXPECT_TRUE(sink.contents.back() == ReadPath(finetune_folder_ + "/model.safetensors"));
}

TEST_F(MaintainTest, ExportFollowsNoLinksOutOfItsFolder) {
  WriteSource("m", "sub/file", AsBytes("content"));
  MustPush(temp() + "/sources/m");
  fs::create_directories(temp() + "/out");
  fs::create_directories(temp() + "/victim");
  fs::create_directory_symlink(temp() + "/victim", temp() + "/out/sub");
  EXPECT_FALSE(ExportTo("m", temp() + "/out").ok());
  EXPECT_TRUE(fs::is_empty(temp() + "/victim"));
}

TEST_F(MaintainTest, ReportTellsWhatIsSharedAndWhatIsOwn) {
  PushPair();
  MustPush(base_folder_, {"copy", PushOptions::Base::kAuto, ""});
  const Result<StoreReport> report = MakeReport(catalog());
  ASSERT_OK(report.status());
  ASSERT_EQ(report->models.size(), 3u);
  const ModelUsage& base = report->models[0];
  const ModelUsage& copy = report->models[1];
  const ModelUsage& finetune = report->models[2];
  EXPECT_EQ(report->logical_bytes, base.logical_bytes + copy.logical_bytes + finetune.logical_bytes);
  EXPECT_NEAR(report->saved_fraction,
              1.0 - static_cast<double>(report->stored_bytes) / static_cast<double>(report->logical_bytes), 1e-9);
  EXPECT_GT(report->disk_bytes, report->stored_bytes);
  EXPECT_EQ(base.shared_bytes, copy.shared_bytes);
  EXPECT_LT(base.stored_bytes, 300u) << "all but its own record is shared with its copy";
  EXPECT_EQ(copy.levels.identical_file, copy.logical_bytes);
  EXPECT_EQ(base.levels.identical_file, 0u);
  EXPECT_GT(base.levels.self, 0u);
  EXPECT_GT(finetune.levels.delta, finetune.logical_bytes * 9 / 10);
  EXPECT_EQ(finetune.levels.identical_file, 2u) << "config.json";
  for (const ModelUsage& model : report->models) {
    const LevelBytes& levels = model.levels;
    EXPECT_EQ(levels.identical_file + levels.identical_tensor + levels.self + levels.delta + levels.raw +
                  levels.content + levels.compact,
              model.logical_bytes)
        << model.name;
  }
  const Result<ModelDetail> detail = DescribeModel(catalog(), "ft");
  ASSERT_OK(detail.status());
  ASSERT_EQ(detail->files.size(), 2u);
  EXPECT_EQ(detail->files[0].kind, "content");
  EXPECT_EQ(detail->files[1].kind, "safetensors");
  ASSERT_EQ(detail->files[1].tensors.size(), base_.size());
  EXPECT_EQ(detail->files[1].tensors[0].name, "embed");
  EXPECT_EQ(detail->files[1].tensors[0].base_model, "base");
  EXPECT_EQ(detail->files[1].sha256.size(), 64u);
  EXPECT_EQ(DescribeModel(catalog(), "nobody").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace modelstore
