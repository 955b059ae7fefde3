// push --update: one model's content gives way to other content in one moment.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <atomic>
#include <map>
#include <thread>

#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;

constexpr PushOptions::Base kNone = PushOptions::Base::kNone;

class UpdateTest : public ModelTest {
 protected:
  static PushOptions Named(const std::string& name, PushOptions::Base base = PushOptions::Base::kAuto) {
    PushOptions options;
    options.name = name;
    options.base = base;
    return options;
  }
  Result<PushReport> Update(const std::string& name, const std::string& folder, PushOptions options = {}) {
    options.name = name;
    options.update = true;
    return PushPath(folder, std::move(options));
  }
  PushReport MustUpdate(const std::string& name, const std::string& folder, PushOptions options = {}) {
    Result<PushReport> report = Update(name, folder, std::move(options));
    EXPECT_OK(report.status());
    return report.ok() ? *report : PushReport{};
  }
  ModelRecord Find(const std::string& name) {
    const Result<ModelRecord> model = catalog().FindModel(name);
    EXPECT_OK(model.status());
    return model.ok() ? *model : ModelRecord{};
  }
  static std::string KeyOf(const TestTensor& tensor) {
    Hasher128 hasher = StartTensorHash(tensor.dtype, tensor.shape);
    hasher.Update(tensor.bytes);
    return TensorKey({hasher.Finish(), 0});
  }
  // The tensors of this content, by whatever name, have a sketch.
  size_t SketchesOf(const std::vector<TestTensor>& tensors) {
    size_t found = 0;
    for (const TestTensor& tensor : tensors) {
      if (catalog().store().Get(Family::kSketches, KeyOf(tensor)).ok()) ++found;
    }
    return found;
  }
  // Makes a record one that cannot be parsed; returns what it was.
  Bytes DamageRecord(Family family, const std::string& key) {
    Bytes before;
    {
      const Result<StoredValue> value = catalog().store().Get(family, key);
      EXPECT_OK(value.status());
      if (value.ok()) before.assign(value->bytes().begin(), value->bytes().end());
    }
    WriteBatch batch;
    batch.Put(family, key, ByteSpan(before).first(before.size() / 2));
    EXPECT_OK(catalog().store().Write(batch, Durability::kSync));
    Reopen();
    return before;
  }
  // After this, the store opens: count and digest in the catalog record are right.
  void ExpectConsistent() {
    ExpectClean();
    Reopen();
    ExpectClean();
  }
  void MustPrune() {
    const Result<PruneReport> pruned = Prune(catalog(), false, job_);
    ASSERT_OK(pruned.status());
  }
};

TEST_F(UpdateTest, WithoutAModelOfThatNameItIsAnOrdinaryPush) {
  const std::string folder = WriteModel("m", SmallModel(1));
  MustUpdate("m", folder);
  EXPECT_THAT(ModelNames(), ElementsAre("m"));
  ExpectStored("m", folder);
  // The rules for names are the same.
  EXPECT_EQ(Update("m/inner", folder).status().code(), StatusCode::kAlreadyExists);
  MustUpdate("team/a", folder);
  EXPECT_EQ(Update("team", folder).status().code(), StatusCode::kAlreadyExists);
  // Without it, a name is taken.
  EXPECT_EQ(PushPath(folder, Named("m")).status().code(), StatusCode::kAlreadyExists);
  ExpectConsistent();
}

TEST_F(UpdateTest, FilesThatStayKeepTheTimeAtWhichTheyCame) {
  const std::string folder = WriteSource("m", "kept", AsBytes("kept"));
  WriteSource("m", "changed", AsBytes("one"));
  WriteSource("m", "touched", AsBytes("touched"));
  MustPush(folder, Named("m"));
  const int64_t first = Find("m").created_ns;
  for (const ModelFile& file : Find("m").files) EXPECT_EQ(file.published_ns, 0) << file.path;
  const auto published = [&] {
    std::map<std::string, int64_t> times;
    for (const ModelFile& file : Find("m").files) times[file.path] = file.published_ns;
    return times;
  };
  WriteSource("m", "changed", AsBytes("two"));
  WriteSource("m", "new", AsBytes("new"));
  const timespec times[2] = {{0, UTIME_OMIT}, {1'000'000'000, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, (folder + "/touched").c_str(), times, 0), 0);
  MustUpdate("m", folder);
  EXPECT_EQ(published(), (std::map<std::string, int64_t>{{"changed", 0}, {"kept", first}, {"new", 0}, {"touched", 0}}));
  const int64_t second = Find("m").created_ns;
  EXPECT_GT(second, first);
  WriteSource("m", "changed", AsBytes("three"));
  MustUpdate("m", folder);
  EXPECT_EQ(published(),
            (std::map<std::string, int64_t>{{"changed", 0}, {"kept", first}, {"new", second}, {"touched", second}}));
  ExpectConsistent();
  // Whoever it belongs to now, could not read it before.
  PushOptions other;
  other.owner_uid = 1000;
  MustUpdate("m", folder, other);
  EXPECT_EQ(published().at("kept"), 0);
}

TEST_F(UpdateTest, ReplacesTheContentAndKeepsTheModel) {
  const std::string first = WriteModel("first", SmallModel(1));
  WriteSource("first", "config.json", AsBytes("{}"));
  const std::string second = WriteModel("second", SmallModel(20));
  MustPush(first, Named("m"));
  const ModelRecord before = Find("m");
  PushOptions options;
  options.owner_uid = 1234;
  MustUpdate("m", second, options);
  ExpectStored("m", second);
  const ModelRecord after = Find("m");
  EXPECT_EQ(after.id, before.id);
  EXPECT_NE(after.push, before.push);
  EXPECT_EQ(after.owner_uid, 1234u);
  EXPECT_EQ(SketchesOf(SmallModel(1)), 0u);  // no base for later pushes
  EXPECT_EQ(SketchesOf(SmallModel(20)), SketchesOf(SmallModel(20)));
  MustPrune();
  EXPECT_GT(SketchesOf(SmallModel(20)), 0u);
  ExpectStored("m", second);
  ExpectConsistent();
  EXPECT_EQ(CountKeys(Family::kFiles), 1u);

  // A name given anew never gets a number that was in use.
  MustPush(first, Named("n"));
  EXPECT_GT(Find("n").id, after.id);
}

TEST_F(UpdateTest, IdenticalContentIsFine) {
  const std::string folder = WriteModel("m", SmallModel(1));
  MustPush(folder);
  const size_t sketches = SketchesOf(SmallModel(1));
  ASSERT_GT(sketches, 0u);
  const PushReport again = MustUpdate("m", folder);
  EXPECT_EQ(again.identical_file_bytes, again.logical_bytes);
  ExpectStored("m", folder);
  EXPECT_EQ(SketchesOf(SmallModel(1)), sketches);
  MustPrune();
  ExpectStored("m", folder);
  ExpectConsistent();
}

TEST_F(UpdateTest, AFinetuneOfTheOldVersionReplacesIt) {
  const std::vector<TestTensor> old = SmallModel(1), finetuned = FinetunedModel(old, 2);
  const std::string first = WriteModel("first", old), second = WriteModel("second", finetuned);
  MustPush(first, Named("m"));
  const PushReport report = MustUpdate("m", second);
  EXPECT_GT(report.delta_bytes, report.logical_bytes / 2);
  EXPECT_EQ(report.base, "");  // no model lists what it is stored against
  EXPECT_EQ(Find("m").base, 0u);
  MustPrune();
  ExpectStored("m", second);
  // What stays anyway goes on serving as a base: a third version is one hop from the first.
  EXPECT_GT(SketchesOf(old), 0u);
  const std::string third = WriteModel("third", FinetunedModel(old, 3));
  EXPECT_GT(MustUpdate("m", third).delta_bytes, report.logical_bytes / 2);
  MustPrune();
  ExpectStored("m", third);
  ExpectConsistent();
  // It goes when nothing is stored against it any more.
  MustUpdate("m", WriteModel("other", SmallModel(90)), Named("", kNone));
  EXPECT_EQ(SketchesOf(old), 0u);
  MustPrune();
  EXPECT_EQ(CountKeys(Family::kTensors), SmallModel(90).size() + 1);  // and the header
  EXPECT_EQ(CountKeys(Family::kEdges), 0u);
  ExpectConsistent();
}

TEST_F(UpdateTest, FinetunesOutliveTheVersionTheyAreStoredAgainst) {
  const std::vector<TestTensor> old = SmallModel(1);
  const std::string base = WriteModel("base", old), finetune = WriteModel("ft", FinetunedModel(old, 2));
  MustPush(base);
  MustPush(finetune);
  MustUpdate("base", WriteModel("other", SmallModel(30)), Named("", kNone));
  EXPECT_EQ(UsageOf("ft").base, "base");  // the model; its content changed
  EXPECT_GT(SketchesOf(old), 0u);
  MustPrune();
  ExpectStored("ft", finetune);
  // Another finetune of the old version is stored against it too, and keeps it when the first is gone.
  const std::string late = WriteModel("late", FinetunedModel(old, 4));
  const PushReport report = MustPush(late);
  EXPECT_GT(report.delta_bytes, report.logical_bytes / 2);
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  MustPrune();
  ExpectStored("late", late);
  // Nothing holds the new version of the base.
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  MustPrune();
  EXPECT_EQ(UsageOf("late").base, "");
  ExpectStored("late", late);
  ExpectConsistent();
}

TEST_F(UpdateTest, RemovingTheLastFinetuneOfAnOldVersionTakesItsSketches) {
  const std::vector<TestTensor> old = SmallModel(1);
  MustPush(WriteModel("base", old));
  MustPush(WriteModel("ft", FinetunedModel(old, 2)));
  MustUpdate("base", WriteModel("other", SmallModel(30)), Named("", kNone));
  ASSERT_OK(Remove(catalog(), "ft", false, job_).status());
  EXPECT_EQ(SketchesOf(old), 0u);
  const PushReport late = MustPush(WriteModel("late", FinetunedModel(old, 4)));
  EXPECT_EQ(late.delta_bytes, 0u);
  MustPrune();
  ExpectConsistent();
}

TEST_F(UpdateTest, ModelsUpdatedToFinetunesOfEachOtherNameNoLoop) {
  const std::vector<TestTensor> one = SmallModel(1), two = SmallModel(20);
  MustPush(WriteModel("a", one));
  MustPush(WriteModel("b", two));
  EXPECT_EQ(MustUpdate("a", WriteModel("a2", FinetunedModel(two, 3))).base, "b");
  // `a` is a finetune of `b` now, so `b` becomes none of `a`, though it is stored against a tensor that `a` has.
  std::vector<TestTensor> mixed = FinetunedModel(two, 4);
  const TestTensor extra = RandomTensor("extra", {600, 600}, 77);
  std::vector<TestTensor> with_extra = FinetunedModel(two, 3);
  with_extra.push_back(extra);
  MustUpdate("a", WriteModel("a3", with_extra));
  const PushReport report = MustUpdate("b", WriteModel("b2", {Finetuned(extra, 5)}));
  EXPECT_GT(report.delta_bytes, 0u);
  EXPECT_EQ(report.base, "");
  EXPECT_EQ(Find("a").base, Find("b").id);
  EXPECT_EQ(Find("b").base, 0u);
  MustPrune();
  ExpectConsistent();
}

TEST_F(UpdateTest, DamageElsewhereHindersNoUpdate) {
  const std::vector<TestTensor> old = SmallModel(1);
  MustPush(WriteModel("other", SmallModel(60)));
  MustPush(WriteModel("m", old));
  DamageRecord(Family::kTensors, KeyOf(SmallModel(60)[1]));
  const std::string second = WriteModel("second", SmallModel(20));
  MustUpdate("m", second);
  EXPECT_TRUE(warnings_.empty());
  EXPECT_EQ(SketchesOf(old), 0u);
  EXPECT_EQ(SketchesOf(SmallModel(20)), SketchesOf(SmallModel(60)));
  ExpectStored("m", second);
}

TEST_F(UpdateTest, DamageInAStoreOfAnOlderBuildHindersNoPush) {
  const std::vector<TestTensor> old = SmallModel(1);
  MustPush(WriteModel("other", SmallModel(60)));
  MustPush(WriteModel("m", old));
  const std::string key = KeyOf(SmallModel(60)[1]);
  const Bytes record = DamageRecord(Family::kTensors, key);
  WriteBatch forget;
  forget.Delete(Family::kMeta, kUsageTotalsKey);
  ASSERT_OK(catalog().store().Write(forget, Durability::kSync));

  const std::string second = WriteModel("second", FinetunedModel(old, 20)), third = WriteModel("third", SmallModel(30));
  EXPECT_GT(MustUpdate("m", second).delta_bytes, 0u);
  EXPECT_EQ(warnings_.size(), 1u);
  MustPush(third);
  EXPECT_EQ(warnings_.size(), 2u);
  ExpectStored("m", second);
  ExpectStored("third", third);
  EXPECT_EQ(catalog().store().Get(Family::kMeta, kUsageTotalsKey).status().code(), StatusCode::kNotFound);
  // Once it can be read again, the next push writes the figures.
  WriteBatch mend;
  mend.Put(Family::kTensors, key, record);
  ASSERT_OK(catalog().store().Write(mend, Durability::kSync));
  warnings_.clear();
  MustUpdate("third", second);
  EXPECT_TRUE(warnings_.empty());
  EXPECT_OK(catalog().store().Get(Family::kMeta, kUsageTotalsKey).status());
  ExpectConsistent();
}

TEST_F(UpdateTest, MendsDamagedRecordsOfTheSameModel) {
  const std::string folder = WriteModel("m", SmallModel(1));
  MustPush(folder);
  DamageRecord(Family::kTensors, KeyOf(SmallModel(1)[1]));
  MustUpdate("m", folder);
  ExpectStored("m", folder);
  DamageRecord(Family::kFiles, FileKey(Find("m").files[0].sha256));
  MustUpdate("m", folder);
  ExpectStored("m", folder);
  EXPECT_TRUE(Verify(catalog(), {"m"}, job_)->failed.empty());
}

TEST_F(UpdateTest, RightsAreAskedBeforeTheWorkAndInTheMomentOfPublishing) {
  const std::string first = WriteModel("first", SmallModel(1)), second = WriteModel("second", SmallModel(20));
  MustPush(first, Named("m"));
  PushOptions options;
  int asked = 0;
  options.may_replace = [&](const ModelRecord& model) {
    EXPECT_EQ(model.name, "m");
    ++asked;
    return PermissionDenied("not yours");
  };
  EXPECT_EQ(Update("m", second, options).status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(asked, 1);
  // It changes hands while the push runs.
  options.may_replace = [&](const ModelRecord&) { return ++asked == 2 ? OkStatus() : PermissionDenied("not yours"); };
  const uint64_t blocks = CountKeys(Family::kBlocks);
  EXPECT_EQ(Update("m", second, options).status().code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(CountKeys(Family::kBlocks), blocks);
  ExpectStored("m", first);
  // Nobody is asked about a name that is free, nor when nothing would be replaced.
  asked = 10;
  options.update = false;
  options.name = "n";
  EXPECT_OK(PushPath(second, options).status());
  EXPECT_OK(Update("o", second, options).status());
  EXPECT_EQ(asked, 10);
  ExpectConsistent();
}

TEST_F(UpdateTest, ANamedBaseMayBeRefusedOrHidden) {
  const std::string base = WriteModel("base", SmallModel(1)), other = WriteModel("m", SmallModel(20));
  MustPush(base);
  PushOptions options;
  options.base = PushOptions::Base::kNamed;
  options.base_name = "nobody";
  const Status absent = PushPath(other, options).status();
  options.base_name = "base";
  options.may_use_as_base = [](const ModelRecord&) { return NotFound("hidden"); };
  const Status hidden = PushPath(other, options).status();
  EXPECT_EQ(hidden.code(), StatusCode::kNotFound);
  // Nothing tells a hidden model from one that is not there.
  std::string expected(absent.message());
  expected.replace(expected.find("nobody"), 6, "base");
  EXPECT_EQ(hidden.message(), expected);
  options.may_use_as_base = [](const ModelRecord&) { return PermissionDenied("no"); };
  EXPECT_EQ(PushPath(other, options).status().code(), StatusCode::kPermissionDenied);
  EXPECT_THAT(ModelNames(), ElementsAre("base"));
  options.may_use_as_base = [](const ModelRecord&) { return OkStatus(); };
  EXPECT_OK(PushPath(other, options).status());
}

// Runs `other` once, in the middle of a push: after planning, before anything is published.
class InTheMiddle {
 public:
  explicit InTheMiddle(std::function<void()> other)
      : other_(std::move(other)), job_([this](const JobProgress& progress) {
          if (progress.phase == "verifying" && !done_.exchange(true)) std::thread([&] { other_(); }).join();
        }) {}
  JobControl& job() { return job_; }
  ~InTheMiddle() { EXPECT_TRUE(done_.load()); }

 private:
  std::function<void()> other_;
  std::atomic<bool> done_{false};
  JobControl job_;
};

TEST_F(UpdateTest, OfTwoUpdatesAtOnceTheLastToPublishStays) {
  const std::string first = WriteModel("first", SmallModel(1));
  const std::string second = WriteModel("second", SmallModel(20)), third = WriteModel("third", SmallModel(30));
  MustPush(first, Named("m"));
  {
    InTheMiddle middle([&] { MustUpdate("m", third); });
    PushOptions options = Named("m");
    options.update = true;
    EXPECT_OK(PushWith(second, options, middle.job()).status());
  }
  EXPECT_THAT(ModelNames(), ElementsAre("m"));
  ExpectStored("m", second);
  EXPECT_EQ(SketchesOf(SmallModel(1)) + SketchesOf(SmallModel(30)), 0u);
  MustPrune();
  ExpectStored("m", second);
  ExpectConsistent();
}

TEST_F(UpdateTest, AModelThatIsRenamedMeanwhileIsNotReplaced) {
  const std::string first = WriteModel("first", SmallModel(1)), second = WriteModel("second", SmallModel(20));
  MustPush(first, Named("m"));
  {
    InTheMiddle middle([&] { EXPECT_OK(Rename(catalog(), "m", "kept", job_)); });
    PushOptions options = Named("m");
    options.update = true;
    EXPECT_OK(PushWith(second, options, middle.job()).status());
  }
  EXPECT_THAT(ModelNames(), ElementsAre("kept", "m"));
  EXPECT_NE(Find("kept").id, Find("m").id);
  ExpectStored("kept", first);
  ExpectStored("m", second);
  ExpectConsistent();
}

TEST_F(UpdateTest, TheBaseOfARunningPushMayBeUpdated) {
  const std::vector<TestTensor> old = SmallModel(1);
  MustPush(WriteModel("base", old));
  const std::string finetune = WriteModel("ft", FinetunedModel(old, 2));
  {
    InTheMiddle middle([&] {
      MustUpdate("base", WriteModel("other", SmallModel(30)), Named("", kNone));
      EXPECT_EQ(SketchesOf(old), 0u);
    });
    const Result<PushReport> report = PushWith(finetune, Named("ft"), middle.job());
    ASSERT_OK(report.status());
    EXPECT_GT(report->delta_bytes, 0u);
    EXPECT_EQ(report->base, "base");
  }
  MustPrune();
  ExpectStored("ft", finetune);
  EXPECT_EQ(UsageOf("ft").base, "base");
  ExpectConsistent();
}

TEST_F(UpdateTest, TensorsThatAnUpdateLeftMayBeTakenUpByARunningPush) {
  const std::vector<TestTensor> old = SmallModel(1);
  MustPush(WriteModel("m", old));
  std::vector<TestTensor> again = old;
  again.push_back(RandomTensor("more", {300, 300}, 5));
  const std::string copy = WriteModel("copy", again);
  {
    InTheMiddle middle([&] { MustUpdate("m", WriteModel("other", SmallModel(30)), Named("", kNone)); });
    ASSERT_OK(PushWith(copy, Named("copy"), middle.job()).status());
  }
  EXPECT_EQ(SketchesOf(old), SketchesOf(SmallModel(30)));  // they have theirs again
  EXPECT_GT(SketchesOf(old), 0u);
  MustPrune();
  ExpectStored("copy", copy);
  ExpectConsistent();
}

TEST_F(UpdateTest, RemovingWaitsForTheUpdateAndTakesWhatItPublished) {
  const std::string first = WriteModel("first", SmallModel(1)), second = WriteModel("second", SmallModel(20));
  MustPush(first, Named("m"));
  std::thread remover;
  {
    std::atomic<bool> started{false};
    JobControl job([&](const JobProgress& progress) {
      if (progress.phase == "verifying" && !started.exchange(true))
        remover = std::thread([&] { EXPECT_OK(Remove(catalog(), "m", false, job_).status()); });
    });
    PushOptions options = Named("m");
    options.update = true;
    EXPECT_OK(PushWith(second, options, job).status());
    ASSERT_TRUE(started);
  }
  remover.join();
  EXPECT_THAT(ModelNames(), Not(Contains("m")));
  MustPrune();
  EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  EXPECT_EQ(CountKeys(Family::kSketches), 0u);
  ExpectConsistent();
}

TEST_F(UpdateTest, OpenFilesAreReadToTheEnd) {
  const std::string first = WriteModel("first", SmallModel(1)), second = WriteModel("second", SmallModel(20));
  MustPush(first, Named("m"));
  {
    const Result<FileRef> open = catalog().reader().OpenFileByHash(Find("m").files[0].sha256);
    ASSERT_OK(open.status());
    MustUpdate("m", second);
    MustPrune();
    catalog().reader().DropCaches();
    Bytes bytes((*open)->bytes());
    const Result<size_t> n = catalog().reader().Read(*open, 0, bytes);
    ASSERT_OK(n.status());
    EXPECT_TRUE(bytes == ReadPath(first + "/model.safetensors"));
  }
  const uint64_t held = CountKeys(Family::kTensors);
  MustPrune();
  EXPECT_LT(CountKeys(Family::kTensors), held);
  ExpectStored("m", second);
  ExpectConsistent();
}

}  // namespace
}  // namespace modelstore
