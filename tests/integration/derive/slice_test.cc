// Sliced variants: what the files have, that they read back, and what is refused.
#include "catalog/derive/slice.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "catalog/derive/derive.h"
#include "codec/tensor/safetensors.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Basis = DeriveOptions::Basis;

constexpr uint64_t kHidden = 64, kInner = 96, kVocabulary = 1500;  // sliced it has a sketch
constexpr uint32_t kLayers = 3;
constexpr const char* kConfig =
    R"({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "rms_norm_eps": 1e-05})";

std::string InLayer(uint32_t layer, const std::string& rest) {
  return "model.layers." + std::to_string(layer) + "." + rest + ".weight";
}

std::vector<TestTensor> LlamaModel(uint64_t seed) {
  std::vector<TestTensor> out = {RandomTensor("model.embed_tokens.weight", {kVocabulary, kHidden}, seed)};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    const auto add = [&](const std::string& rest, std::vector<uint64_t> shape) {
      out.push_back(RandomTensor(InLayer(layer, rest), std::move(shape), ++seed));
    };
    add("input_layernorm", {kHidden});
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"})
      add(name, {kHidden, kHidden});
    add("post_attention_layernorm", {kHidden});
    add("mlp.gate_proj", {kInner, kHidden});
    add("mlp.up_proj", {kInner, kHidden});
    add("mlp.down_proj", {kHidden, kInner});
  }
  out.push_back(RandomTensor("model.norm.weight", {kHidden}, ++seed));
  return out;
}

// X^T X of more samples than inputs, or of one: singular.
TestTensor Moments(const std::string& name, uint64_t n, uint64_t samples, uint64_t seed) {
  const TestTensor x = RandomTensor("x", {samples, n}, seed, DType::kF32, 1);
  const auto* values = reinterpret_cast<const float*>(x.bytes.data());
  std::vector<float> h(n * n, 0);
  for (uint64_t s = 0; s < samples; ++s) {
    for (uint64_t i = 0; i < n; ++i) {
      for (uint64_t j = 0; j < n; ++j)
        h[i * n + j] += values[s * n + i] * values[s * n + j] / static_cast<float>(samples);
    }
  }
  const ByteSpan bytes = std::as_bytes(std::span(h));
  return {name, DType::kF32, {n, n}, Bytes(bytes.begin(), bytes.end())};
}

std::vector<TestTensor> MomentsOfAll(uint64_t n, uint64_t samples) {
  std::vector<TestTensor> out = {Moments("model.embed_tokens.weight", n, samples, 1)};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    out.push_back(Moments(InLayer(layer, "self_attn.q_proj"), n, samples, 10 + layer));
    out.push_back(Moments(InLayer(layer, "mlp.gate_proj"), n, samples, 20 + layer));
  }
  return out;
}

class SliceTest : public ModelTest {
 protected:
  void SetUp() override {
    folder_ = WriteModel("base", LlamaModel(1));
    WriteSource("base", "config.json", AsBytes(std::string(kConfig)));
    WriteSource("base", "tokenizer.json", AsBytes(std::string("words")));
    MustPush(folder_);
  }

  Result<PushReport> SliceBy(double share, Basis basis, const std::vector<TestTensor>& moments,
                             const std::string& name = "variant", const std::string& source = "base") {
    const std::string folder = WriteSource("moments", "m.safetensors", SafetensorsFile(moments));
    const Result<SourceTree> tree = SourceTree::Scan(folder + "/m.safetensors");
    EXPECT_OK(tree.status());
    DeriveOptions options{.source = source, .name = name};
    options.slice = share;
    options.basis = basis;
    options.moments = &*tree;
    return Derive(catalog(), options, job_);
  }

  // Moments for sources with a head of their own.
  static std::vector<TestTensor> WithHead() {
    std::vector<TestTensor> moments = MomentsOfAll(kHidden, 200);
    moments.push_back(Moments("lm_head.weight", kHidden, 200, 99));
    return moments;
  }

  TensorIndex IndexOf(const std::string& model) {
    const Bytes bytes = ReadStored(model, "model.safetensors");
    return *ParseSafetensorsHeader(
        ByteSpan(bytes).first(*SafetensorsHeaderBytes(ByteSpan(bytes).first(8), bytes.size())), bytes.size());
  }
  std::vector<TestTensor> TensorsOf(const std::string& model) {
    const Bytes file = ReadStored(model, "model.safetensors");
    std::vector<TestTensor> tensors;
    for (const TensorEntry& entry : IndexOf(model).tensors)
      tensors.push_back({entry.name, entry.dtype, entry.shape,
                         Bytes(file.begin() + static_cast<ptrdiff_t>(entry.begin),
                               file.begin() + static_cast<ptrdiff_t>(entry.end))});
    return tensors;
  }
  TensorId IdOf(const std::string& model, const std::string& tensor) {
    const ModelRecord stored = *catalog().FindModel(model);
    for (const ModelFile& file : stored.files) {
      const FileRecord record = *ParseFileRecord(catalog().store().Get(Family::kFiles, FileKey(file.sha256))->bytes());
      for (const Extent& extent : record.extents) {
        if (extent.name == tensor) return extent.tensor;
      }
    }
    ADD_FAILURE() << model << " has no " << tensor;
    return {};
  }
  std::vector<uint64_t> ShapeOf(const TensorIndex& index, const std::string& name) {
    for (const TensorEntry& entry : index.tensors) {
      if (entry.name == name) return entry.shape;
    }
    return {};
  }

  std::string folder_;
};

TEST_F(SliceTest, ABasisABlockHasShortcuts) {
  const Result<PushReport> report = SliceBy(0.25, Basis::kBlock, MomentsOfAll(kHidden, 200));
  ASSERT_OK(report.status());
  EXPECT_EQ(report->recipe, "25 % sliced, 48 of 64, a basis a block");
  const TensorIndex index = IndexOf("variant");
  EXPECT_THAT(ShapeOf(index, "model.embed_tokens.weight"), ElementsAre(kVocabulary, 48));
  EXPECT_THAT(ShapeOf(index, "lm_head.weight"), ElementsAre(kVocabulary, kHidden));
  EXPECT_THAT(ShapeOf(index, InLayer(0, "self_attn.q_proj")), ElementsAre(kHidden, 48));
  EXPECT_THAT(ShapeOf(index, InLayer(0, "self_attn.o_proj")), ElementsAre(48, kHidden));
  EXPECT_THAT(ShapeOf(index, InLayer(0, "attn_shortcut")), ElementsAre(48, 48));
  EXPECT_THAT(ShapeOf(index, InLayer(2, "mlp.down_proj")), ElementsAre(kHidden, kInner));
  EXPECT_THAT(ShapeOf(index, InLayer(2, "mlp_shortcut")), ElementsAre(kHidden, 48));
  EXPECT_THAT(ShapeOf(index, InLayer(1, "input_layernorm")), ElementsAre());
  EXPECT_THAT(ShapeOf(index, "model.norm.weight"), ElementsAre(kHidden));
  const ModelRecord model = *catalog().FindModel("variant");
  std::vector<std::string> paths;
  for (const ModelFile& file : model.files) paths.push_back(file.path);
  EXPECT_THAT(paths, ElementsAre("config.json", "model.safetensors", "modeling_sliced.py", "tokenizer.json"));
  // The head, the last writer and the norm are the source's own.
  EXPECT_EQ(report->identical_tensor_bytes, 2 * (kVocabulary * kHidden + kHidden * kInner + kHidden));
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
  ExpectClean();
  Reopen();
  ExpectClean();
  // Its axes go with it.
  ASSERT_OK(Remove(catalog(), "variant", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  ExpectStored("base", folder_);
  ExpectClean();
  ASSERT_OK(Remove(catalog(), "base", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  EXPECT_EQ(CountKeys(Family::kBlocks), 0u);
}

// What reads the stream is computed, and costs little.
TEST_F(SliceTest, ReadersOfTheStreamAreProjected) {
  const Result<PushReport> report = SliceBy(0.25, Basis::kBlock, MomentsOfAll(kHidden, 200));
  ASSERT_OK(report.status());
  EXPECT_EQ(TensorOf("variant", "model.embed_tokens.weight").encoding, "projected");
  EXPECT_EQ(TensorOf("variant", InLayer(1, "mlp.up_proj")).encoding, "projected");
  EXPECT_EQ(TensorOf("variant", InLayer(1, "mlp.up_proj")).base_tensor, InLayer(1, "mlp.up_proj"));
  EXPECT_EQ(TensorOf("variant", InLayer(1, "self_attn.o_proj")).encoding, "self");
  EXPECT_GT(report->projected_bytes, report->logical_bytes / 3);
  EXPECT_GT(UsageOf("variant").levels.projected, 0u);
}

// Of a source whose weights are parts of a compact tensor nothing is projected; it is as good a source.
TEST_F(SliceTest, OfACompactModelItIsStoredWhole) {
  PushOptions options;
  options.compact.emplace();
  options.compact->choice = CompactChoice{.rank = 4};
  options.name = "small";
  const std::string tuned = WriteModel("tuned", FinetunedModel(LlamaModel(1), 50));
  WriteSource("tuned", "config.json", AsBytes(std::string(kConfig)));
  MustPush(tuned, options);
  const Result<PushReport> report = SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200), "variant", "small");
  ASSERT_OK(report.status());
  EXPECT_EQ(report->fidelity, Fidelity::kCompact);
  ExpectClean();
}

// Also of a finetune that is stored as a delta: its variant needs the finetune, which needs its base.
TEST_F(SliceTest, OfAFinetuneItIsProjectedToo) {
  const std::string tuned = WriteModel("tuned", FinetunedModel(LlamaModel(1), 50));
  WriteSource("tuned", "config.json", AsBytes(std::string(kConfig)));
  EXPECT_GT(MustPush(tuned).delta_bytes, 0u);
  const Result<PushReport> report = SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200), "variant", "tuned");
  ASSERT_OK(report.status());
  EXPECT_GT(report->projected_bytes, 0u);
  ExpectClean();
  EXPECT_EQ(Remove(catalog(), "tuned", false, job_).status().code(), StatusCode::kHasDependents);
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
}

TEST_F(SliceTest, OneBasisIsAStockModel) {
  ASSERT_OK(SliceBy(0.3, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const TensorIndex index = IndexOf("variant");
  EXPECT_THAT(ShapeOf(index, "lm_head.weight"), ElementsAre(kVocabulary, 44));  // a multiple of the 4 heads
  EXPECT_THAT(ShapeOf(index, InLayer(2, "mlp.down_proj")), ElementsAre(44, kInner));
  EXPECT_THAT(ShapeOf(index, InLayer(1, "input_layernorm")), ElementsAre(44));
  EXPECT_THAT(std::string(AsChars(ReadStored("variant", "config.json"))), HasSubstr("\"hidden_size\": 44"));
  ExpectClean();
}

TEST_F(SliceTest, TheSameAgainIsTheSame) {
  ASSERT_OK(SliceBy(0.5, Basis::kBlock, MomentsOfAll(kHidden, 200)).status());
  const Result<PushReport> again = SliceBy(0.5, Basis::kBlock, MomentsOfAll(kHidden, 200), "again");
  ASSERT_OK(again.status());
  EXPECT_EQ(again->identical_file_bytes, again->logical_bytes);
}

TEST_F(SliceTest, AFinetuneOfItIsADeltaAgainstIt) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const std::vector<TestTensor> tensors = TensorsOf("variant");
  const PushReport report = MustPush(WriteModel("tuned", FinetunedModel(tensors, 9)));
  EXPECT_EQ(report.base, "variant");
  EXPECT_GT(report.delta_bytes, report.logical_bytes * 8 / 10);
  // The next step of the training, nearer to the first than to the variant, and a compact copy.
  const std::vector<TestTensor> tuned = FinetunedModel(tensors, 9);
  EXPECT_GT(MustPush(WriteModel("further", FinetunedModel(tuned, 90))).delta_bytes, report.logical_bytes * 8 / 10);
  PushOptions compact;
  compact.compact.emplace();
  compact.compact->choice = CompactChoice{.rank = 4};
  compact.name = "small";
  EXPECT_GT(MustPush(WriteModel("other", FinetunedModel(tensors, 900)), compact).compact_bytes, 0u);
  ExpectClean();
}

// What a base is computed from is needed as long as it is computed.
TEST_F(SliceTest, WhatABaseIsComputedFromStays) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  PushOptions compact;
  compact.compact.emplace();
  compact.compact->choice = CompactChoice{.rank = 4};
  compact.name = "small";
  MustPush(WriteModel("other", FinetunedModel(TensorsOf("variant"), 900)), compact);
  PushOptions update;
  update.name = "variant";
  update.update = true;
  MustPush(WriteModel("unlike", {RandomTensor("x", {64, 64}, 77)}), update);
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
  ASSERT_OK(Prune(catalog(), false, job_).status());
  ExpectClean();
}

// A base that is computed gets blocks once a finetune needs it, as the same tensor; a compact finetune is too small for
// that.
TEST_F(SliceTest, ABaseIsMaterialised) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const Bytes before = ReadStored("variant", "model.safetensors");
  const std::vector<TestTensor> tensors = TensorsOf("variant");
  const std::string reader = InLayer(1, "mlp.up_proj");
  const TensorRef computed = *catalog().reader().OpenTensorById(IdOf("variant", reader));
  const TensorRef axes = *catalog().reader().OpenTensorById(computed->record.ViewOf(InputRole::kAxes).front().base);

  PushOptions compact;
  compact.compact.emplace();
  compact.compact->choice = CompactChoice{.rank = 4};
  compact.name = "small";
  MustPush(WriteModel("other", FinetunedModel(tensors, 900)), compact);
  EXPECT_EQ(TensorOf("variant", reader).encoding, "projected");
  ASSERT_OK(Remove(catalog(), "small", false, job_).status());

  const PushReport first = MustPush(WriteModel("tuned", FinetunedModel(tensors, 9)));
  EXPECT_EQ(TensorOf("variant", reader).encoding, "self");
  EXPECT_EQ(TensorOf("tuned", reader).encoding, "delta");
  EXPECT_EQ(UsageOf("variant").levels.projected, 0u);
  EXPECT_EQ(ReadStored("variant", "model.safetensors"), before);
  ExpectClean();  // figures too
  // The next one finds it so.
  EXPECT_LT(MustPush(WriteModel("further", FinetunedModel(tensors, 90))).stored_bytes, first.stored_bytes * 3 / 4);

  // What it was computed from goes; whoever still has it as it was reads what it is now.
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_EQ(catalog().reader().OpenTensorById(axes->id).status().code(), StatusCode::kNotFound);
  {
    const Result<BlockRef> block = catalog().reader().ReadBlock(computed, 0, /*keep=*/false);
    ASSERT_OK(block.status());
    for (const TestTensor& tensor : tensors) {
      if (tensor.name == reader) {
        EXPECT_TRUE(std::ranges::equal(block->bytes(), ByteSpan(tensor.bytes).first(block->bytes().size())));
      }
    }
  }
  Reopen();
  EXPECT_EQ(ReadStored("variant", "model.safetensors"), before);
  ExpectClean();
  // Without its finetunes it goes with its model.
  for (const char* name : {"tuned", "further", "variant", "base"})
    ASSERT_OK(Remove(catalog(), name, false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  EXPECT_EQ(CountKeys(Family::kBlocks), 0u);
}

// Readers that know the base as it was before a push gave it blocks, and were told nothing.
TEST_F(SliceTest, WhoKnowsABaseAsItWasReadsWhatIsStoredAgainstIt) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const Bytes before = ReadStored("variant", "model.safetensors");
  const std::vector<TestTensor> tuned = FinetunedModel(TensorsOf("variant"), 9);
  const std::string name = InLayer(1, "mlp.up_proj");
  const ModelRecord model = *catalog().FindModel("variant");
  const auto file = std::ranges::find(model.files, "model.safetensors", &ModelFile::path);
  ASSERT_NE(file, model.files.end());

  ReadEngine reader(catalog().store(), catalog().pool(), {.memory_budget_bytes = 64 << 20, .prefetch_bytes = 0});
  const Result<FileRef> open = reader.OpenFileByHash(file->sha256);
  ASSERT_OK(open.status());
  Bytes out(before.size());
  ASSERT_OK(reader.Read(*open, 0, out).status());
  ASSERT_TRUE((*reader.OpenTensorById(IdOf("variant", name)))->record.is_computed());
  MustPush(WriteModel("tuned", tuned));
  ASSERT_EQ(TensorOf("variant", name).encoding, "self");

  const Result<TensorRef> delta = reader.OpenTensorById(IdOf("tuned", name));
  ASSERT_OK(delta.status());
  ASSERT_EQ((*delta)->record.depth, 1);
  const auto expected = std::ranges::find(tuned, name, &TestTensor::name);
  Bytes content(expected->bytes.size());
  ASSERT_OK(reader.ReadTensor(*delta, 0, content));
  EXPECT_TRUE(content == expected->bytes);
  // What is open follows: blocks are found again under the names that they are cached by.
  reader.DropCaches();
  ASSERT_OK(reader.Read(*open, 0, out).status());
  EXPECT_TRUE(out == before);
  const uint64_t misses = reader.stats().misses;
  ASSERT_OK(reader.Read(*open, 0, out).status());
  EXPECT_EQ(reader.stats().misses, misses);
}

TEST_F(SliceTest, VerifyFindsNothingBesideALoopOfVariantsAndTheirFinetunes) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const std::string tuned = WriteModel("tuned", FinetunedModel(TensorsOf("variant"), 9));
  std::atomic<bool> done{false};
  std::thread changer([&] {
    PushOptions options;
    options.name = "tuned";
    while (!done) {
      JobControl job;
      EXPECT_OK(PushWith(tuned, options, job).status());  // gives the variant's tensors blocks
      for (const char* name : {"tuned", "variant"}) EXPECT_OK(Remove(catalog(), name, false, job).status());
      EXPECT_OK(Prune(catalog(), false, job).status());
      EXPECT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
    }
  });
  for (int round = 0; round < 10; ++round) ExpectClean();
  done = true;
  changer.join();
  ExpectClean();
}

// As deep as it may be, a variant can still be read, and so can a finetune of it.
TEST_F(SliceTest, VariantsOfVariantsOfVariants) {
  std::string source = "base";
  for (int depth = 0; depth < 10; ++depth) {
    const std::string name = "v" + std::to_string(depth);
    ASSERT_OK(SliceBy(0, Basis::kGlobal, WithHead(), name, source).status()) << depth;
    source = name;
  }
  const std::vector<TestTensor> tensors = TensorsOf(source);
  MustPush(WriteModel("tuned", FinetunedModel(tensors, 9)));
  Reopen();
  ExpectClean();
}

// A record that says what cannot be makes an error of reading, not bytes.
TEST_F(SliceTest, HostileRecordsAreCorruption) {
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 200)).status());
  const ModelRecord model = *catalog().FindModel("variant");
  const ModelFile& file = model.files[1];
  const TensorId id = IdOf("variant", InLayer(1, "mlp.up_proj"));
  const std::string key = TensorKey(id);
  const TensorRecord good = *ParseTensorRecord(catalog().store().Get(Family::kTensors, key)->bytes());
  ASSERT_TRUE(good.is_computed());
  ASSERT_EQ(good.depth, 1);
  const auto code_of = [&](const std::function<void(TensorRecord&)>& change) {
    TensorRecord record = good;
    change(record);
    WriteBatch batch;
    batch.Put(Family::kTensors, key, Serialize(record));
    EXPECT_OK(catalog().store().Write(batch, Durability::kSync));
    Reopen();
    const Result<FileRef> opened = catalog().reader().OpenFileByHash(file.sha256);
    Bytes out(file.bytes);
    return opened.ok() ? catalog().reader().Read(*opened, 0, out).status().code() : opened.status().code();
  };
  EXPECT_EQ(code_of([](TensorRecord&) {}), StatusCode::kOk);
  EXPECT_EQ(code_of([](TensorRecord& r) { r.MutableViewOf(InputRole::kNorm).clear(); }), StatusCode::kCorruption);
  EXPECT_EQ(code_of([](TensorRecord& r) { r.MutableViewOf(InputRole::kAxes) = r.ViewOf(InputRole::kWeight); }),
            StatusCode::kCorruption);
  EXPECT_EQ(code_of([](TensorRecord& r) { r.MutableViewOf(InputRole::kWeight).front().elems -= kHidden; }),
            StatusCode::kCorruption);
  EXPECT_EQ(code_of([](TensorRecord& r) { r.MutableViewOf(InputRole::kWeight).front().base_offset_elems = 1; }),
            StatusCode::kCorruption);
  EXPECT_EQ(code_of([&](TensorRecord& r) { r.MutableViewOf(InputRole::kWeight).front().base = id; }),
            StatusCode::kCorruption);  // itself
  EXPECT_EQ(code_of([](TensorRecord& r) { r.depth = 0; }), StatusCode::kCorruption);
  EXPECT_EQ(code_of([](TensorRecord& r) { r.MutableViewOf(InputRole::kBase) = r.ViewOf(InputRole::kWeight); }),
            StatusCode::kCorruption);
  // Other weights than the file's hash was made of.
  Frame frame = *ParseFrame(good.frame);
  frame.projection->has_norm = false;
  EXPECT_EQ(code_of([&](TensorRecord& r) {
              r.MutableViewOf(InputRole::kNorm).clear();
              r.frame = SerializeFrame(frame);
            }),
            StatusCode::kOk);  // well formed: verify tells
  EXPECT_EQ(Verify(catalog(), {"variant"}, job_)->failed.size(), 1u);
  EXPECT_EQ(code_of([](TensorRecord&) {}), StatusCode::kOk);
  ExpectClean();
}

TEST_F(SliceTest, RefusesWeightsThatAreNotFinite) {
  std::vector<TestTensor> tensors = LlamaModel(5);
  tensors[3].bytes[0] = std::byte{0};
  tensors[3].bytes[1] = std::byte{0x7f};
  tensors[3].bytes[2] = tensors[3].bytes[3] = std::byte{0xff};
  WriteSource("nan", "config.json", AsBytes(std::string(kConfig)));
  MustPush(WriteModel("nan", tensors));
  const Status status = SliceBy(0.25, Basis::kBlock, MomentsOfAll(kHidden, 100), "x", "nan").status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
}

TEST_F(SliceTest, SurvivesSingularMoments) {
  ASSERT_OK(SliceBy(0.25, Basis::kBlock, MomentsOfAll(kHidden, 3)).status());
  ASSERT_OK(SliceBy(0.25, Basis::kGlobal, MomentsOfAll(kHidden, 1), "other").status());
  ExpectClean();
}

TEST_F(SliceTest, RefusesWhatItCannotMake) {
  const std::vector<TestTensor> good = MomentsOfAll(kHidden, 100);
  for (const double share : {-0.1, 1.0, 0.99, double{NAN}})
    EXPECT_EQ(SliceBy(share, Basis::kBlock, good).status().code(), StatusCode::kInvalidArgument) << share;
  EXPECT_THAT(std::string(SliceBy(0.25, Basis::kBlock, MomentsOfAll(32, 100)).status().message()),
              HasSubstr("those of another model"));
  std::vector<TestTensor> missing = good;
  missing.pop_back();
  EXPECT_THAT(std::string(SliceBy(0.25, Basis::kBlock, missing).status().message()),
              HasSubstr("nothing of 'model.layers.2.mlp.gate_proj.weight'"));
  std::vector<TestTensor> nan = good;
  const float bad = NAN;
  std::memcpy(nan[2].bytes.data(), &bad, sizeof bad);
  EXPECT_EQ(SliceBy(0.25, Basis::kBlock, nan).status().code(), StatusCode::kInvalidArgument);
  DeriveOptions options{.source = "base", .name = "variant"};
  options.slice = 0.25;
  EXPECT_THAT(std::string(Derive(catalog(), options, job_).status().message()), HasSubstr("--moments"));

  std::vector<TestTensor> tensors = LlamaModel(5);
  tensors[2] = Converted(tensors[2], DType::kF64);
  WriteSource("wide", "config.json", AsBytes(std::string(kConfig)));
  MustPush(WriteModel("wide", tensors));
  EXPECT_EQ(SliceBy(0.25, Basis::kBlock, good, "x", "wide").status().code(), StatusCode::kUnsupported);
  tensors = LlamaModel(6);
  tensors[3].shape = {kHidden * kHidden};
  WriteSource("flat", "config.json", AsBytes(std::string(kConfig)));
  MustPush(WriteModel("flat", tensors));
  EXPECT_THAT(std::string(SliceBy(0.25, Basis::kBlock, good, "x", "flat").status().message()),
              HasSubstr("another shape"));
  MustPush(WriteModel("plain", LlamaModel(7)));
  EXPECT_THAT(std::string(SliceBy(0.25, Basis::kBlock, good, "x", "plain").status().message()),
              HasSubstr("no config.json"));
  ASSERT_OK(SliceBy(0.25, Basis::kBlock, good).status());
  EXPECT_THAT(std::string(SliceBy(0.25, Basis::kBlock, good, "x", "variant").status().message()),
              HasSubstr("sliced already"));
  EXPECT_THAT(ModelNames(), ElementsAre("base", "flat", "plain", "variant", "wide"));
  EXPECT_OK(Prune(catalog(), false, job_).status());
  ExpectClean();
}

TEST_F(SliceTest, CancelledItLeavesNothing) {
  bool slicing = false;
  JobControl leaving([&](const JobProgress& progress) {
    if (progress.phase == "slicing" && progress.done_bytes > 0) {
      slicing = true;
      leaving.Cancel();
    }
  });
  const std::string folder = WriteSource("moments", "m.safetensors", SafetensorsFile(MomentsOfAll(kHidden, 100)));
  const Result<SourceTree> tree = SourceTree::Scan(folder + "/m.safetensors");
  DeriveOptions options{.source = "base", .name = "variant"};
  options.slice = 0.25;
  options.moments = &*tree;
  EXPECT_EQ(Derive(catalog(), options, leaving).status().code(), StatusCode::kCancelled);
  EXPECT_TRUE(slicing);
  EXPECT_THAT(ModelNames(), ElementsAre("base"));
  ExpectClean();
}

TEST(SlicedSizeTest, IsAMultiple) {
  EXPECT_EQ(*SlicedSize(576, 9, 0.25, Basis::kBlock), 432u);
  EXPECT_EQ(*SlicedSize(576, 9, 0.1, Basis::kBlock), 512u);
  EXPECT_EQ(*SlicedSize(576, 9, 0.1, Basis::kGlobal), 513u);
  EXPECT_EQ(*SlicedSize(576, 9, 0, Basis::kBlock), 576u);
}

}  // namespace
}  // namespace modelstore
