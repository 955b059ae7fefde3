// Maintenance of a store that holds a compact model: verify, report, rm, prune, export and base choice. The model is
// put together by hand, so that these do not rest on what a push chooses.
#include <algorithm>
#include <random>

#include "catalog/read/read_engine.h"
#include "catalog/write/file_reader.h"
#include "catalog/write/folder_sink.h"
#include "catalog/write/store_usage.h"
#include "codec/decode/compact_frame.h"
#include "codec/decode/frame.h"
#include "codec/kernels/level_tokens.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

constexpr std::string_view kFile = "model.safetensors";
constexpr uint64_t kCompactElems = 64 * 1024;  // larger tensors are made compact

class CompactStoreTest : public ModelTest {
 protected:
  // Pushes base and finetune, and publishes "small": the finetune, its large tensors compact against the base's.
  void SetUp() override {
    base_ = SmallModel(1);
    base_folder_ = WriteModel("base", base_);
    MustPush(base_folder_);
    finetune_folder_ = WriteModel("ft", FinetunedModel(base_, 50));
    MustPush(finetune_folder_);
    ASSERT_NO_FATAL_FAILURE(PublishCompact());
    content_ = ReadStored("small", std::string(kFile));
  }

  FileRecord FileOf(const std::string& model) {
    const Result<ModelRecord> record = catalog().FindModel(model);
    EXPECT_OK(record.status());
    const auto value = catalog().store().Get(Family::kFiles, FileKey(record->files[0].sha256));
    EXPECT_OK(value.status());
    return *ParseFileRecord(value->bytes());
  }

  // A raw tensor of pseudo-random `values`.
  TensorId PutPart(PushId push, DType dtype, const std::vector<uint16_t>& values, uint32_t* next_block) {
    const ByteSpan bytes = std::as_bytes(std::span(values));
    const Frame frame = PlainFrame(Encoding::kRaw, dtype, values.size());
    TensorRecord record;
    record.dtype = dtype;
    record.shape = {values.size()};
    record.bytes = bytes.size();
    record.push = push;
    record.first_block = *next_block;
    record.block_count = frame.BlockCount();
    record.frame = SerializeFrame(frame);
    WriteBatch batch;
    for (uint32_t i = 0; i < record.block_count; ++i) {
      const Bytes sealed = SealBlock(bytes.subspan(frame.BlockBegin(i) * 2, frame.BlockElems(i) * 2));
      record.coded_bytes += sealed.size();
      batch.Put(Family::kBlocks, BlockKey(push, (*next_block)++), sealed);
    }
    Hasher128 hasher = StartTensorHash(dtype, record.shape);
    hasher.Update(bytes);
    const TensorId id{hasher.Finish(), 0};
    batch.Put(Family::kTensors, TensorKey(id), Serialize(record));
    EXPECT_OK(catalog().store().Write(batch, Durability::kSync));
    parts_.push_back(id);
    return id;
  }

  void PublishCompact() {
    KvStore& store = catalog().store();
    Result<CatalogMeta> meta = catalog().Meta();
    ASSERT_OK(meta.status());
    const PushId push = meta->next_push++;
    const FileRecord base = FileOf("base");
    FileRecord file = FileOf("ft");

    std::mt19937_64 random(9);
    auto compact = std::make_shared<CompactFrame>();
    std::vector<uint16_t> factors, residual, scales;
    const auto append = [&](size_t levels, int max, unsigned group, std::vector<uint16_t>* tokens) {
      std::vector<int8_t> values((levels + group - 1) / group * group);
      for (size_t i = 0; i < levels; ++i)
        values[i] = static_cast<int8_t>(static_cast<int>(random() % static_cast<uint64_t>(2 * max + 1)) - max);
      const size_t count = values.size() / group;
      tokens->resize(tokens->size() + count);
      LevelsToTokens(values.data(), count, group, tokens->data() + tokens->size() - count);
    };
    TensorRecord record;
    uint64_t elems = 0;
    for (Extent& extent : file.extents) {
      if (extent.name.empty() || extent.bytes < 2 * kCompactElems) continue;
      const auto from = std::find_if(base.extents.begin(), base.extents.end(),
                                     [&](const Extent& e) { return e.name == extent.name; });
      ASSERT_NE(from, base.extents.end());
      CompactSegment segment;
      segment.columns = 256;
      segment.rows = extent.bytes / 2 / segment.columns;
      segment.rank = 3;
      segment.has_residual = compact->segments.empty();
      segment.drift_code = DriftCode(0.25);
      append(segment.rank * segment.columns, 9, kFactorTokenLevels, &factors);
      append(segment.rows * segment.rank, 9, kFactorTokenLevels, &factors);
      if (segment.has_residual) append(segment.elems(), 1, kResidualTokenLevels, &residual);
      for (uint32_t i = 0; i < segment.rank + segment.groups(); ++i) scales.push_back(0x3800);
      record.MutableViewOf(InputRole::kBase).push_back({.elems = segment.elems(), .base = from->tensor});
      extent.kind = Extent::Kind::kTensorPart;
      extent.offset_bytes = 2 * elems;
      elems += segment.elems();
      compact->segments.push_back(std::move(segment));
      ++compact_tensors_;
    }
    ASSERT_OK(compact->FinishLayout(elems));
    Frame frame;
    frame.encoding = Encoding::kCompact;
    frame.dtype = frame.coded_dtype = DType::kBF16;
    frame.elems = elems;
    frame.block_elems = kBlockBytes / 2;
    frame.compact = std::move(compact);
    record.dtype = DType::kBF16;
    record.shape = {elems};
    record.bytes = 2 * elems;
    record.push = push;
    record.depth = 1;
    record.frame = SerializeFrame(frame);
    uint32_t next_block = 0;
    record.MutableViewOf(InputRole::kFactors) = {
        {.elems = factors.size(), .base = PutPart(push, DType::kU16, factors, &next_block)}};
    record.MutableViewOf(InputRole::kResidual) = {
        {.elems = residual.size(), .base = PutPart(push, DType::kU16, residual, &next_block)}};
    record.MutableViewOf(InputRole::kScales) = {
        {.elems = scales.size(), .base = PutPart(push, DType::kBF16, scales, &next_block)}};

    // Its content is what it is rebuilt to.
    Bytes content(record.bytes);
    const auto tensor = catalog().reader().OpenUnpublished(TensorId{{1, 1}, 0}, record);
    ASSERT_OK(tensor.status());
    ASSERT_OK(catalog().reader().ReadTensor(*tensor, 0, content));
    Hasher128 hasher = StartTensorHash(record.dtype, record.shape);
    hasher.Update(content);
    compact_ = {hasher.Finish(), 0};

    Sha256 sha;
    for (Extent& extent : file.extents) {
      if (extent.kind == Extent::Kind::kTensorPart) {
        extent.tensor = compact_;
        sha.Update(ByteSpan(content).subspan(extent.offset_bytes, extent.bytes));
      } else if (extent.kind == Extent::Kind::kLiteral) {
        sha.Update(extent.literal);
      } else {
        const auto exact = catalog().reader().OpenTensorById(extent.tensor);
        ASSERT_OK(exact.status());
        Bytes bytes(extent.bytes);
        ASSERT_OK(catalog().reader().ReadTensor(*exact, 0, bytes));
        sha.Update(bytes);
      }
    }
    Result<ModelRecord> model = catalog().FindModel("ft");
    ASSERT_OK(model.status());
    model->id = meta->next_model++;
    model->name = "small";
    model->push = push;
    model->fidelity = Fidelity::kCompact;
    model->drift = 0.25;
    model->drift_kind = DriftKind::kMoments;
    model->method = "by hand";
    ASSERT_EQ(model->files.size(), 1u);
    model->files[0].sha256 = sha.Finish();
    meta->model_count += 1;
    meta->model_digest ^= ModelDigest(*model);
    AddFeature(&*meta, kCompactFeature);
    WriteBatch batch;
    batch.Put(Family::kTensors, TensorKey(compact_), Serialize(record));
    // AddUsage counts what the batch publishes.
    for (const TensorId& part : parts_) {
      const auto value = store.Get(Family::kTensors, TensorKey(part));
      ASSERT_OK(value.status());
      batch.Put(Family::kTensors, TensorKey(part), value->bytes());
    }
    batch.Put(Family::kFiles, FileKey(model->files[0].sha256), Serialize(file));
    batch.Put(Family::kModels, model->name, Serialize(*model));
    batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(*meta));
    ASSERT_OK(AddUsage(store, *meta, {}, &batch));
    ASSERT_OK(store.Write(batch, Durability::kSync));
  }

  void ExpectUsageIsRight() {
    const Result<StoreWalk> walk = StoreWalk::Load(catalog().store());
    ASSERT_OK(walk.status());
    const Result<WriteBatch> repairs = UsageRepairs(catalog().store(), *walk);
    ASSERT_OK(repairs.status());
    EXPECT_TRUE(repairs->empty()) << repairs->ops().size() << " of family meta differ";
  }
  void ExpectRemoved(const std::string& name) { EXPECT_OK(Remove(catalog(), name, false, job_).status()); }
  Result<PruneReport> PruneAll() { return Prune(catalog(), false, job_); }
  bool HasTensor(const TensorId& id) { return catalog().store().Get(Family::kTensors, TensorKey(id)).ok(); }
  void ExpectReadsWell() { EXPECT_TRUE(ReadStored("small", std::string(kFile)) == content_); }

  std::vector<TestTensor> base_;
  std::string base_folder_, finetune_folder_;
  TensorId compact_;
  std::vector<TensorId> parts_;
  size_t compact_tensors_ = 0;
  Bytes content_;
};

TEST_F(CompactStoreTest, VerifiesExportsAndOpensAgain) {
  EXPECT_FALSE(content_ == ReadPath(finetune_folder_ + "/model.safetensors"));
  ExpectClean();
  ExpectUsageIsRight();
  Reopen();
  ExpectReadsWell();
  ASSERT_OK(Export(catalog(), "small", nullptr, *NewFolderSink(temp() + "/out"), job_).status());
  EXPECT_TRUE(ReadPath(temp() + "/out/model.safetensors") == content_);
  ExpectStored("base", base_folder_);
  ExpectStored("ft", finetune_folder_);
}

TEST_F(CompactStoreTest, ReportSaysWhatItIsAndWhatItCosts) {
  const ModelUsage usage = UsageOf("small");
  EXPECT_EQ(usage.fidelity, "compact");
  EXPECT_EQ(usage.drift, 0.25);
  EXPECT_EQ(usage.drift_kind, "moments");
  EXPECT_EQ(usage.method, "by hand");
  EXPECT_EQ(usage.base, "base");
  EXPECT_EQ(UsageOf("ft").fidelity, "exact");
  EXPECT_EQ(UsageOf("ft").drift_kind, "");

  uint64_t compact_bytes = 0;
  for (const TestTensor& tensor : base_)
    if (tensor.bytes.size() >= 2 * kCompactElems) compact_bytes += tensor.bytes.size();
  EXPECT_EQ(usage.levels.compact, compact_bytes);
  EXPECT_EQ(usage.levels.identical_file, 0u);
  EXPECT_EQ(usage.levels.compact + usage.levels.identical_tensor + usage.levels.content, content_.size());

  // Its share: records, and the tensors that it consists of.
  uint64_t stored = 0;
  const auto add = [&](Family family, const std::string& key) {
    const auto value = catalog().store().Get(family, key);
    ASSERT_OK(value.status());
    stored += key.size() + value->bytes().size();
  };
  add(Family::kModels, "small");
  add(Family::kFiles, FileKey(catalog().FindModel("small")->files[0].sha256));
  const uint64_t own_records = stored;
  add(Family::kTensors, TensorKey(compact_));
  for (const TensorId& part : parts_) {
    add(Family::kTensors, TensorKey(part));
    const auto value = catalog().store().Get(Family::kTensors, TensorKey(part));
    const TensorRecord record = *ParseTensorRecord(value->bytes());
    for (uint32_t i = 0; i < record.block_count; ++i)
      add(Family::kBlocks, BlockKey(record.push, record.first_block + i));
  }
  EXPECT_EQ(usage.stored_bytes, stored);

  uint64_t named = 0;
  size_t residuals = 0;
  const Result<ModelDetail> detail = DescribeModel(catalog(), "small");
  ASSERT_OK(detail.status());
  for (const TensorUsage& tensor : detail->files[0].tensors) {
    if (tensor.encoding != "compact") continue;
    named += tensor.stored_bytes;
    residuals += tensor.has_residual;
    EXPECT_EQ(tensor.rank, 3u) << tensor.name;
    EXPECT_EQ(tensor.drift, 0.25) << tensor.name;
    EXPECT_EQ(tensor.base_model, "base") << tensor.name;
    EXPECT_EQ(tensor.base_tensor, tensor.name);
    EXPECT_EQ(tensor.shape.back(), 256u) << tensor.name;
    EXPECT_EQ(tensor.shape[0] * tensor.shape[1] * 2, tensor.logical_bytes) << tensor.name;
  }
  EXPECT_EQ(residuals, 1u);
  // What the tensors are said to cost is what is stored, but for rounding.
  EXPECT_NEAR(static_cast<double>(named), static_cast<double>(stored - own_records),
              static_cast<double>(compact_tensors_));
}

TEST_F(CompactStoreTest, PinsItsBaseAndNothingElse) {
  ExpectRemoved("ft");
  const Result<RemoveReport> refused = Remove(catalog(), "base", false, job_);
  EXPECT_EQ(refused.status().code(), StatusCode::kHasDependents);
  EXPECT_NE(refused.status().message().find("small"), std::string::npos) << refused.status().ToString();
  ASSERT_OK(PruneAll().status());
  ExpectReadsWell();
  ExpectClean();
  ExpectUsageIsRight();

  const Result<RemoveReport> removed = Remove(catalog(), "small", false, job_);
  ASSERT_OK(removed.status());
  const Result<PruneReport> pruned = PruneAll();
  ASSERT_OK(pruned.status());
  // The model's own record went with rm.
  const uint64_t model_bytes = removed->freed_bytes - pruned->freed_bytes;
  EXPECT_GT(model_bytes, std::string_view("small").size());
  EXPECT_LT(model_bytes, 300u);
  EXPECT_FALSE(HasTensor(compact_));
  for (const TensorId& part : parts_) EXPECT_FALSE(HasTensor(part));
  ExpectClean();
  ExpectUsageIsRight();
  ExpectStored("base", base_folder_);
  ExpectRemoved("base");
  ASSERT_OK(PruneAll().status());
  EXPECT_EQ(CountKeys(Family::kTensors) + CountKeys(Family::kBlocks) + CountKeys(Family::kEdges), 0u);
}

TEST_F(CompactStoreTest, ReadersKeepWhatItConsistsOf) {
  const Result<FileRef> file = catalog().reader().OpenFileByHash(catalog().FindModel("small")->files[0].sha256);
  ASSERT_OK(file.status());
  for (const char* name : {"small", "ft", "base"}) ExpectRemoved(name);
  ASSERT_OK(PruneAll().status());
  Bytes out(content_.size());
  const Result<size_t> read = catalog().reader().Read(*file, 0, out);
  ASSERT_OK(read.status());
  EXPECT_TRUE(out == content_);
}

TEST_F(CompactStoreTest, VerifyTellsOfDamageInEveryPart) {
  for (const TensorId& part : parts_) {
    const auto value = catalog().store().Get(Family::kTensors, TensorKey(part));
    const TensorRecord record = *ParseTensorRecord(value->bytes());
    const std::string key = BlockKey(record.push, record.first_block);
    const auto good = catalog().store().Get(Family::kBlocks, key);
    ASSERT_OK(good.status());
    const ByteSpan good_bytes = good->bytes();
    Bytes damaged(good_bytes.begin(), good_bytes.end());
    damaged.back() ^= std::byte{4};
    WriteBatch batch;
    batch.Put(Family::kBlocks, key, damaged);
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
    catalog().reader().DropCaches();
    const Result<VerifyReport> report = Verify(catalog(), {"small"}, job_);
    ASSERT_OK(report.status());
    ASSERT_FALSE(report->failed.empty());
    for (const VerifyFailure& failure : report->failed)
      EXPECT_EQ(failure.model + "/" + failure.file, "small/model.safetensors");
    EXPECT_TRUE(Verify(catalog(), {"ft", "base"}, job_)->failed.empty());
    // Damage that decodes: another token is another content.
    const Bytes resealed = SealBlock(ByteSpan(damaged).subspan(kBlockHeaderBytes));
    batch = {};
    batch.Put(Family::kBlocks, key, resealed);
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
    catalog().reader().DropCaches();
    EXPECT_FALSE(Verify(catalog(), {"small"}, job_)->failed.empty());
    batch = {};
    batch.Put(Family::kBlocks, key, good_bytes);
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
    catalog().reader().DropCaches();
  }
  ExpectClean();
}

TEST_F(CompactStoreTest, VerifyRebuildsItOnce) {
  uint64_t total = 0, done = 0;
  JobControl job([&](const JobProgress& progress) { total = progress.total_bytes, done = progress.done_bytes; });
  const Result<VerifyReport> report = Verify(catalog(), {"small"}, job);
  ASSERT_OK(report.status());
  EXPECT_TRUE(report->failed.empty());
  EXPECT_EQ(done, total);
  // The file, its bases, and what it consists of; not the compact tensor by itself besides.
  const auto tensor = catalog().reader().OpenTensorById(compact_);
  ASSERT_OK(tensor.status());
  EXPECT_EQ(TensorsInFull(FileOf("small")).at(compact_), (*tensor)->record.bytes);
  EXPECT_LT(total, content_.size() + 2 * (*tensor)->record.bytes);
}

// Pushed, not made by hand: one compact tensor and one bundle of small tensors, spread over the model's files.
TEST_F(ModelTest, ACompactModelOfSeveralFilesIsCountedOnce) {
  const std::vector<TestTensor> base = SmallModel(1), finetune = FinetunedModel(base, 50);
  const auto write = [&](const std::string& name, const std::vector<TestTensor>& tensors) {
    const size_t half = tensors.size() / 2;
    WriteSource(name, "a.safetensors", SafetensorsFile({tensors.begin(), tensors.begin() + half}));
    return WriteSource(name, "b.safetensors", SafetensorsFile({tensors.begin() + half, tensors.end()}));
  };
  const std::string base_folder = write("base", base);
  MustPush(base_folder);
  PushOptions options;
  options.compact.emplace();
  options.compact->choice = CompactChoice{.rank = 2, .residual_step = 3};
  const PushReport pushed = MustPush(write("small", finetune), options);
  EXPECT_EQ(pushed.fidelity, Fidelity::kCompact);

  uint64_t large = 0, small = 0;
  for (const TestTensor& tensor : finetune) (tensor.shape.size() == 1 ? small : large) += tensor.bytes.size();
  const ModelUsage usage = UsageOf("small");
  EXPECT_EQ(usage.levels.compact, large);
  EXPECT_EQ(usage.levels.delta + usage.levels.self + usage.levels.raw, small);
  EXPECT_EQ(usage.levels.identical_tensor, usage.logical_bytes - large - small);  // the headers are the base's
  EXPECT_EQ(usage.stored_bytes, pushed.stored_bytes);
  // Each file counts its own share of what both consist of; the model's record is nobody's.
  const Result<ModelDetail> detail = DescribeModel(catalog(), "small");
  ASSERT_OK(detail.status());
  uint64_t of_files = 0;
  for (const FileUsage& file : detail->files) of_files += file.stored_bytes;
  EXPECT_LE(of_files, usage.stored_bytes + usage.shared_bytes);
  EXPECT_GE(of_files, usage.stored_bytes + usage.shared_bytes - 300);
  const Result<StoreWalk> walk = StoreWalk::Load(catalog().store());
  ASSERT_OK(walk.status());
  EXPECT_TRUE(UsageRepairs(catalog().store(), *walk)->empty());
  ExpectClean();
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
  const Result<RemoveReport> removed = Remove(catalog(), "small", false, job_);
  ASSERT_OK(removed.status());
  EXPECT_EQ(removed->freed_bytes, pushed.stored_bytes);
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_EQ(CountKeys(Family::kTensors) + CountKeys(Family::kBlocks) + CountKeys(Family::kFiles), 0u);
}

TEST(TensorsInFullTest, AreThoseWhosePartsFollowEachOther) {
  const TensorId a{{1, 1}, 0}, b{{2, 2}, 0}, c{{3, 3}, 0};
  const auto part = [](const TensorId& id, uint64_t offset, uint64_t bytes) {
    return Extent{Extent::Kind::kTensorPart, bytes, id, offset, {}, ""};
  };
  const auto whole = [](const TensorId& id, uint64_t bytes) {
    return Extent{Extent::Kind::kTensor, bytes, id, 0, {}, ""};
  };
  using Tensors = std::map<TensorId, uint64_t>;
  FileRecord file;
  file.extents = {part(a, 0, 10), part(b, 0, 4), part(a, 10, 5), whole(c, 7), part(a, 15, 0), whole(c, 7)};
  EXPECT_EQ(TensorsInFull(file), (Tensors{{a, 15}, {b, 4}, {c, 7}}));
  file.extents = {part(a, 10, 5), part(a, 0, 10), part(b, 0, 4), part(b, 5, 1), part(c, 0, 7), part(c, 0, 7)};
  EXPECT_EQ(TensorsInFull(file), Tensors{});
  file.extents = {whole(a, 10), part(a, 0, 10), part(b, 0, 7), whole(b, 7)};
  EXPECT_EQ(TensorsInFull(file), (Tensors{{b, 7}}));
}

TEST_F(CompactStoreTest, IsNobodysBase) {
  // What it is rebuilt to, a little changed: nearer to it than to anything else.
  Bytes near = content_;
  for (size_t i = near.size() - 400'000; i < near.size(); i += 64) near[i] ^= std::byte{1};
  const std::string folder = WriteSource("near", std::string(kFile), near);
  PushOptions named;
  named.base = PushOptions::Base::kNamed;
  named.base_name = "small";
  EXPECT_EQ(PushPath(folder, named).status().code(), StatusCode::kInvalidArgument);
  const PushReport pushed = MustPush(folder);
  EXPECT_EQ(pushed.base, "base");
  const Result<StoreWalk> walk = StoreWalk::Load(catalog().store());
  ASSERT_OK(walk.status());
  const uint32_t compact = walk->FindTensor(compact_);
  for (const StoreWalk::Tensor& tensor : walk->tensors())
    EXPECT_EQ(std::count(tensor.bases.begin(), tensor.bases.end(), compact), 0);
  ExpectStored("near", folder);
  ExpectClean();
}

TEST_F(CompactStoreTest, ItsContentPushedExactlyIsTheSameFile) {
  const std::string folder = WriteSource("again", std::string(kFile), content_);
  const PushReport pushed = MustPush(folder);
  EXPECT_EQ(pushed.identical_file_bytes, content_.size());
  ExpectStored("again", folder);
  ExpectClean();
  ExpectUsageIsRight();
}

}  // namespace
}  // namespace modelstore
