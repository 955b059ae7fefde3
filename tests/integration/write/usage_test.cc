// Usage records against a walk over all records, after random histories.
#include <algorithm>
#include <random>

#include "catalog/write/store_usage.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

class UsageTest : public ModelTest {
 protected:
  Result<PruneReport> PruneAll(bool dry_run = false) { return Prune(catalog(), dry_run, job_); }

  // Everything that report shows, as text.
  std::string ReportText() {
    const Result<StoreReport> report = MakeReport(catalog());
    EXPECT_OK(report.status());
    std::string text;
    if (!report.ok()) return text;
    const auto add = [&](std::initializer_list<uint64_t> numbers) {
      for (const uint64_t number : numbers) text += " " + std::to_string(number);
      text += "\n";
    };
    add({report->logical_bytes, report->stored_bytes, report->prunable_bytes});
    for (const ModelUsage& model : report->models) {
      const LevelBytes& levels = model.levels;
      text += model.name + " " + model.kind + " (" + model.base + ")";
      add({model.logical_bytes, model.stored_bytes, model.shared_bytes, model.files, levels.identical_file,
           levels.identical_tensor, levels.self, levels.delta, levels.raw, levels.content});
    }
    return text;
  }

  // The same report from nothing but the records of models, files and tensors.
  std::string WalkedReportText() {
    KvStore& store = catalog().store();
    const Result<StoredValue> totals = store.Get(Family::kMeta, kUsageTotalsKey);
    WriteBatch hide, restore;
    hide.Delete(Family::kMeta, kUsageTotalsKey);
    if (totals.ok()) restore.Put(Family::kMeta, kUsageTotalsKey, totals->bytes());
    EXPECT_OK(store.Write(hide, Durability::kSync));
    const std::string text = ReportText();
    EXPECT_OK(store.Write(restore, Durability::kSync));
    return text;
  }

  void ExpectUsageIsRight() {
    const Result<StoreWalk> walk = StoreWalk::Load(catalog().store());
    ASSERT_OK(walk.status());
    const Result<WriteBatch> repairs = UsageRepairs(catalog().store(), *walk);
    ASSERT_OK(repairs.status());
    EXPECT_TRUE(repairs->empty()) << repairs->ops().size() << " of family meta differ";
    EXPECT_EQ(ReportText(), WalkedReportText());
  }
};

TEST_F(UsageTest, ReportsEqualAWalkAfterRandomHistories) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<std::string> names;
    for (int step = 0; step < 30; ++step) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", step " + std::to_string(step));
      const uint64_t what = random() % 10;
      const std::string name = "s" + std::to_string(seed) + "-" + std::to_string(step);
      if (what < 6 || names.empty()) {
        // A new base, a finetune of one, another name for a file that may be stored, with files and tensors repeated.
        const uint64_t family = random() % 3;
        std::vector<TestTensor> tensors = SmallModel(1 + family);
        const uint64_t kind = random() % 4;
        if (kind == 1) tensors = FinetunedModel(tensors, 100 + random() % 3);
        if (kind == 2) tensors.push_back(Renamed(tensors[1], "tied"));
        std::string folder = WriteModel(name, tensors);
        if (kind == 3) {
          WriteSource(name, "copy.safetensors", SafetensorsFile(tensors));
          WriteSource(name, "tokenizer.json", NoiseBytes(random() % 2, 3000));
          WriteSource(name, "empty", {});
        }
        MustPush(folder);
        names.push_back(name);
      } else if (what < 8) {
        const size_t victim = random() % names.size();
        const Result<RemoveReport> dry = Remove(catalog(), names[victim], true, job_);
        const Result<StoreReport> before = MakeReport(catalog());
        const Result<RemoveReport> removed = Remove(catalog(), names[victim], false, job_);
        ASSERT_EQ(dry.status().code(), removed.status().code());
        if (removed.ok()) {
          EXPECT_EQ(dry->freed_bytes, removed->freed_bytes);
          EXPECT_EQ(MakeReport(catalog())->stored_bytes, before->stored_bytes - removed->freed_bytes);
          names.erase(names.begin() + static_cast<ptrdiff_t>(victim));
        } else {
          EXPECT_EQ(removed.status().code(), StatusCode::kHasDependents);
        }
      } else if (what == 8 && random() % 2 == 0) {
        // A finetune's base may go this way, or become a finetune itself.
        PushOptions options;
        options.name = names[random() % names.size()];
        options.update = true;
        std::vector<TestTensor> tensors = SmallModel(1 + random() % 4);
        if (random() % 2 == 0) tensors = FinetunedModel(tensors, 200 + random() % 3);
        MustPush(WriteModel(name, tensors), options);
      } else if (what == 8) {
        const size_t index = random() % names.size();
        ASSERT_OK(Rename(catalog(), names[index], name, job_));
        names[index] = name;
      } else {
        const uint64_t prunable = MakeReport(catalog())->prunable_bytes;
        EXPECT_EQ(PruneAll(true)->freed_bytes, prunable);
        ExpectUsageIsRight();
        EXPECT_EQ(PruneAll()->freed_bytes, prunable);
        EXPECT_EQ(MakeReport(catalog())->prunable_bytes, 0u);
      }
      ExpectUsageIsRight();
    }
  }
  ExpectClean();
}

TEST_F(UsageTest, CountsBasesThatNoModelListsAnyMore) {
  MustPush(WriteModel("base", SmallModel(1)));
  const PushReport finetune = MustPush(WriteModel("ft", FinetunedModel(SmallModel(1), 50)));
  ASSERT_EQ(finetune.base, "base");
  const uint64_t old_base = UsageOf("base").stored_bytes;
  PushOptions options;
  options.name = "base";
  options.update = true;
  MustPush(WriteModel("other", SmallModel(7)), options);
  ExpectUsageIsRight();
  // The old content is no model's share, and stays.
  const Result<StoreReport> report = MakeReport(catalog());
  ASSERT_OK(report.status());
  uint64_t shares = 0;
  for (const ModelUsage& model : report->models) shares += model.stored_bytes;
  EXPECT_GT(report->stored_bytes, shares + old_base / 2);
  EXPECT_LT(report->stored_bytes, shares + old_base);
  // Nothing that only "base" holds is needed by another model now.
  const Result<RemoveReport> removed = Remove(catalog(), "base", false, job_);
  ASSERT_OK(removed.status());
  ASSERT_OK(PruneAll().status());
  ExpectStored("ft", temp() + "/sources/ft");
  EXPECT_EQ(UsageOf("ft").base, "");
  EXPECT_EQ(UsageOf("ft").kind, "model");
  ExpectUsageIsRight();
  const uint64_t left = MakeReport(catalog())->stored_bytes;
  EXPECT_EQ(Remove(catalog(), "ft", false, job_)->freed_bytes, left);
  ASSERT_OK(PruneAll().status());
  EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  EXPECT_EQ(CountKeys(Family::kSketches), 0u);
}

TEST_F(UsageTest, RebuildsWhatAnOlderBuildDidNotWrite) {
  const auto forget = [&] {
    WriteBatch batch;
    ASSERT_OK(catalog().store().Scan(Family::kMeta, kUsageTotalsKey, [&](std::string_view key, ByteSpan) {
      batch.Delete(Family::kMeta, key);
      return OkStatus();
    }));
    ASSERT_FALSE(batch.empty());
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  };
  MustPush(WriteModel("base", SmallModel(1)));
  MustPush(WriteModel("ft", FinetunedModel(SmallModel(1), 50)));
  const std::string report = ReportText();
  forget();
  EXPECT_EQ(ReportText(), report);
  const Result<RemoveReport> refused = Remove(catalog(), "base", false, job_);
  EXPECT_EQ(refused.status().code(), StatusCode::kHasDependents);
  // A push writes what is missing …
  MustPush(WriteModel("ft2", FinetunedModel(SmallModel(1), 60)));
  ExpectUsageIsRight();
  // … and so does prune.
  forget();
  ASSERT_OK(Remove(catalog(), "ft2", false, job_).status());
  ASSERT_OK(PruneAll().status());
  EXPECT_EQ(ReportText(), report);
  ExpectUsageIsRight();
}

TEST_F(UsageTest, VerifyPutsFiguresRight) {
  MustPush(WriteModel("base", SmallModel(1)));
  const Result<CatalogMeta> meta = catalog().Meta();
  WriteBatch batch;
  batch.Put(Family::kMeta, kUsageTotalsKey, Serialize(UsageTotals{meta->next_model, 1}));
  batch.Put(Family::kMeta, UsageKey(Sha256Digest{}), Serialize(UsageRecord{}));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  const Result<VerifyReport> report = Verify(catalog(), {}, job_);
  ASSERT_OK(report.status());
  EXPECT_TRUE(report->failed.empty()) << "figures are no damage";
  ExpectUsageIsRight();
}

TEST_F(UsageTest, RecordsThatItCannotParseAreAsGoodAsNone) {
  MustPush(WriteModel("base", SmallModel(1)));
  MustPush(WriteModel("ft", FinetunedModel(SmallModel(1), 50)));
  MustPush(WriteModel("other", SmallModel(7)));
  const auto spoil = [&](std::string_view prefix, const std::function<void(Bytes&)>& change) {
    WriteBatch batch;
    ASSERT_OK(catalog().store().Scan(Family::kMeta, prefix, [&](std::string_view key, ByteSpan value) {
      Bytes spoilt(value.begin(), value.end());
      change(spoilt);
      batch.Put(Family::kMeta, key, spoilt);
      return OkStatus();
    }));
    ASSERT_FALSE(batch.empty());
    batch.Put(Family::kMeta, std::string(kUsagePrefix) + "?", AsBytes("?"));
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  };
  const auto newer = [](Bytes& record) { record[0] = std::byte{99}; };
  const auto cut = [](Bytes& record) { record.pop_back(); };
  int version = 60;
  for (const std::function<void(Bytes&)>& change : {std::function<void(Bytes&)>(newer), {cut}}) {
    for (const std::string_view prefix : {kUsagePrefix, kUsageTotalsKey}) {
      SCOPED_TRACE(prefix);
      const std::string report = ReportText();
      spoil(prefix, change);
      EXPECT_EQ(ReportText(), report);
      EXPECT_EQ(Remove(catalog(), "base", true, job_).status().code(), StatusCode::kHasDependents);
      PushOptions options;
      options.name = "other";
      options.update = true;
      MustPush(WriteModel("other", SmallModel(7)), options);
      MustPush(WriteModel("ft2", FinetunedModel(SmallModel(1), version++)));
      ASSERT_OK(Remove(catalog(), "ft2", false, job_).status());
      ASSERT_OK(PruneAll().status());
      ExpectUsageIsRight();
    }
  }
}

TEST_F(UsageTest, ModelsWithLostOrDamagedTensorsCanBeRemoved) {
  MustPush(WriteModel("lost", SmallModel(1)));
  MustPush(WriteModel("damaged", SmallModel(40)));
  for (const std::string name : {"lost", "damaged"}) {
    const Result<ModelRecord> model = catalog().FindModel(name);
    ASSERT_OK(model.status());
    const Result<StoredValue> value = catalog().store().Get(Family::kFiles, FileKey(model->files[0].sha256));
    ASSERT_OK(value.status());
    const Result<FileRecord> file = ParseFileRecord(value->bytes());
    ASSERT_OK(file.status());
    WriteBatch batch;
    for (const Extent& extent : file->extents) {
      if (extent.kind == Extent::Kind::kLiteral) continue;
      if (name == "lost") batch.Delete(Family::kTensors, TensorKey(extent.tensor));
      if (name == "damaged") batch.Put(Family::kTensors, TensorKey(extent.tensor), AsBytes("?"));
    }
    ASSERT_FALSE(batch.empty());
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
    EXPECT_OK(Remove(catalog(), name, false, job_).status());
  }
  EXPECT_TRUE(ModelNames().empty());
  EXPECT_EQ(CountKeys(Family::kSketches), 0u);
}

TEST_F(UsageTest, TotalsOfAnOlderBuildsPushAreNotTrusted) {
  MustPush(WriteModel("base", SmallModel(1)));
  // What such a build leaves: the model and a larger next model, no usage record.
  const Result<StoredValue> totals = catalog().store().Get(Family::kMeta, kUsageTotalsKey);
  ASSERT_OK(totals.status());
  const Bytes before(totals->bytes().begin(), totals->bytes().end());
  const std::string folder = WriteModel("other", SmallModel(2));
  MustPush(folder);
  const std::string report = ReportText();
  const Result<ModelRecord> other = catalog().FindModel("other");
  WriteBatch batch;
  batch.Put(Family::kMeta, kUsageTotalsKey, before);
  batch.Delete(Family::kMeta, UsageKey(other->files[0].sha256));
  ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  EXPECT_EQ(ReportText(), report);
  MustPush(WriteSource("files", "a.txt", AsBytes("text")));
  ExpectUsageIsRight();
}

}  // namespace
}  // namespace modelstore
