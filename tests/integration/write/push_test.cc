#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <thread>

#include "catalog/write/folder_sink.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

class PushTest : public ModelTest {};

TEST_F(PushTest, StoresAndReadsBackAFolder) {
  const std::string folder = WriteModel("m", SmallModel(1));
  WriteSource("m", "config.json", AsBytes("{\"hidden\": 1}"));
  WriteSource("m", "sub/folder/notes.txt", AsBytes("notes"));
  const PushReport report = MustPush(folder);
  EXPECT_EQ(report.name, "m");
  EXPECT_EQ(report.base, "");
  EXPECT_TRUE(report.verified);
  EXPECT_GT(report.self_bytes, 0u);
  EXPECT_EQ(report.delta_bytes, 0u);
  EXPECT_EQ(report.self_bytes + report.raw_bytes + report.content_bytes + report.identical_tensor_bytes +
                report.identical_file_bytes,
            report.logical_bytes);
  EXPECT_LT(report.stored_bytes, report.logical_bytes * 8 / 10);
  ExpectStored("m", folder);
  Reopen();
  ExpectStored("m", folder);
  ExpectClean();
}

TEST_F(PushTest, KeepsModeAndTimeOfASingleFile) {
  const std::string folder = WriteSource("one", "weights.bin", NoiseBytes(1, 1000));
  const std::string path = folder + "/weights.bin";
  ASSERT_EQ(chmod(path.c_str(), 0750), 0);
  const timespec times[2] = {{0, UTIME_OMIT}, {1234567890, 123456789}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  EXPECT_EQ(MustPush(path).name, "weights.bin");
  const Result<ModelRecord> model = catalog().FindModel("weights.bin");
  ASSERT_OK(model.status());
  ASSERT_EQ(model->files.size(), 1u);
  EXPECT_EQ(model->files[0].path, "weights.bin");
  EXPECT_EQ(model->files[0].mode, 0550u);
  // Builds before execute bits were kept refuse such a store instead of calling it damaged.
  const Result<CatalogMeta> meta = catalog().Meta();
  ASSERT_OK(meta.status());
  EXPECT_EQ(meta->features, std::vector<std::string>{"executable"});
  EXPECT_EQ(model->files[0].mtime_ns, TimeNs{1234567890123456789});
}

TEST_F(PushTest, KeepsTimesThatNanosecondsIn64BitsDoNotHold) {
  const std::string folder = WriteSource("m", "f", AsBytes("x"));
  const std::string path = folder + "/f", out = folder + "-out";
  for (const time_t seconds : {time_t{10'413'792'000}, time_t{-2'000'000'000}, time_t{-1}}) {
    const timespec times[2] = {{0, UTIME_OMIT}, {seconds, 123'456'789}};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    struct stat source {
    }, exported{};
    ASSERT_EQ(stat(path.c_str(), &source), 0);
    if (source.st_mtim.tv_sec != seconds) GTEST_SKIP() << "the file system of the test has no such times";
    PushOptions options;
    options.name = "m";
    options.update = true;
    MustPush(folder, options);
    EXPECT_EQ(catalog().FindModel("m")->files[0].mtime_ns, ToTimeNs(times[1]));
    Reopen();
    JobControl job;
    fs::remove_all(out);
    ASSERT_OK(Export(catalog(), "m", nullptr, *NewFolderSink(out), job).status());
    ASSERT_EQ(stat((out + "/f").c_str(), &exported), 0);
    EXPECT_EQ(exported.st_mtim.tv_sec, seconds);
    EXPECT_EQ(exported.st_mtim.tv_nsec, 123'456'789);
  }
}

TEST_F(PushTest, FinetuneBecomesADeltaOfItsBase) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  MustPush(WriteModel("unrelated", SmallModel(100)));
  const std::string folder = WriteModel("ft", FinetunedModel(base, 50));
  const PushReport report = MustPush(folder);
  EXPECT_EQ(report.base, "base");
  EXPECT_GT(report.delta_bytes, report.logical_bytes * 9 / 10);
  EXPECT_LT(report.stored_bytes, report.logical_bytes / 2);
  EXPECT_EQ(TensorOf("ft", "layers.0.up").base_tensor, "layers.0.up");
  EXPECT_EQ(TensorOf("ft", "layers.0.norm").encoding, "delta") << "small tensors follow the large ones by name";
  EXPECT_EQ(UsageOf("ft").kind, "finetune");
  EXPECT_EQ(UsageOf("base").kind, "base");
  EXPECT_EQ(UsageOf("unrelated").kind, "model");
  ExpectStored("ft", folder);
  ExpectClean();
}

TEST_F(PushTest, RenamedFinetuneFindsItsBase) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  std::vector<TestTensor> renamed;
  for (const TestTensor& tensor : FinetunedModel(base, 50)) renamed.push_back(Renamed(tensor, "x." + tensor.name));
  const std::string folder = WriteSource("ft", "other_name.safetensors", SafetensorsFile(renamed));
  EXPECT_EQ(MustPush(folder).base, "base");
  const TensorUsage swapped = TensorOf("ft", "x.layers.1.up");
  EXPECT_EQ(swapped.encoding, "delta");
  EXPECT_EQ(swapped.base_tensor, "layers.1.up");
  ExpectStored("ft", folder);
}

TEST_F(PushTest, ChainsStayOneHopLong) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  const std::vector<TestTensor> first = FinetunedModel(base, 50);
  MustPush(WriteModel("first", first));
  // Nearer to the first finetune than to the base.
  const std::string folder = WriteModel("second", FinetunedModel(first, 90));
  EXPECT_EQ(MustPush(folder).base, "base");
  EXPECT_EQ(TensorOf("second", "embed").base_model, "base");
  ExpectStored("second", folder);
}

TEST_F(PushTest, BaseNoneAndBaseByName) {
  const std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  MustPush(WriteModel("other", FinetunedModel(base, 7)), {"other", PushOptions::Base::kNone, ""});
  EXPECT_EQ(UsageOf("other").base, "");
  const std::string folder = WriteModel("ft", FinetunedModel(base, 50));
  const PushReport none = MustPush(folder, {"ft-none", PushOptions::Base::kNone, ""});
  EXPECT_EQ(none.base, "");
  EXPECT_EQ(none.delta_bytes, 0u);
  const std::string folder2 = WriteModel("ft2", FinetunedModel(base, 51));
  EXPECT_EQ(MustPush(folder2, {"ft2", PushOptions::Base::kNamed, "other"}).base, "other");
  ExpectStored("ft2", folder2);
  const Result<PushReport> missing =
      PushPath(WriteModel("ft3", FinetunedModel(base, 52)), {"ft3", PushOptions::Base::kNamed, "nobody"});
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
}

TEST_F(PushTest, IdenticalFilesAndTensorsAreStoredOnce) {
  const std::vector<TestTensor> tensors = SmallModel(1);
  const std::string folder = WriteModel("a", tensors);
  const PushReport first = MustPush(folder);
  const PushReport again = MustPush(folder, {"again", PushOptions::Base::kAuto, ""});
  EXPECT_EQ(again.identical_file_bytes, again.logical_bytes);
  EXPECT_LT(again.stored_bytes, 300u);

  // The same tensors in another order and file, one of them twice (tied weights).
  std::vector<TestTensor> shuffled(tensors.rbegin(), tensors.rend());
  shuffled.push_back(Renamed(tensors[0], "lm_head"));
  const std::string other = WriteModel("b", shuffled);
  const PushReport moved = MustPush(other);
  EXPECT_GT(moved.identical_tensor_bytes, moved.logical_bytes * 9 / 10);
  EXPECT_LT(moved.stored_bytes, first.stored_bytes / 20);
  ExpectStored("b", other);
}

TEST_F(PushTest, RepeatsWithinOnePushAreStoredOnce) {
  const TestTensor tensor = RandomTensor("embed", {512, 512}, 1);
  WriteModel("m", {tensor, Renamed(tensor, "lm_head")});
  const std::string folder =
      WriteSource("m", "copy.safetensors", SafetensorsFile({tensor, Renamed(tensor, "lm_head")}));
  const PushReport report = MustPush(folder);
  EXPECT_EQ(report.identical_file_bytes, report.logical_bytes / 2);
  EXPECT_EQ(report.identical_tensor_bytes, tensor.bytes.size());
  EXPECT_LT(report.stored_bytes, tensor.bytes.size());
  ExpectStored("m", folder);
}

TEST_F(PushTest, StoredBytesAreWhatTheReportCounts) {
  const std::vector<TestTensor> base = SmallModel(1);
  uint64_t pushed = MustPush(WriteModel("base", base)).stored_bytes;
  pushed += MustPush(WriteModel("ft", FinetunedModel(base, 50))).stored_bytes;
  pushed += MustPush(WriteSource("files", "a.txt", NoiseBytes(3, 5000))).stored_bytes;
  const Result<StoreReport> report = MakeReport(catalog());
  ASSERT_OK(report.status());
  EXPECT_EQ(report->stored_bytes, pushed);
  EXPECT_EQ(report->prunable_bytes, 0u);
  uint64_t kept = 0;
  for (const Family family :
       {Family::kModels, Family::kFiles, Family::kTensors, Family::kBlocks, Family::kEdges, Family::kSketches}) {
    EXPECT_OK(catalog().store().Scan(family, "", [&](std::string_view key, ByteSpan value) {
      kept += key.size() + value.size();
      return OkStatus();
    }));
  }
  EXPECT_EQ(kept, pushed) << "the store holds keys and values that no push reported";
}

class DTypePushTest : public PushTest, public ::testing::WithParamInterface<std::pair<DType, DType>> {};

TEST_P(DTypePushTest, AnyPairOfFloatsRoundTrips) {
  const auto [base_dtype, dtype] = GetParam();
  const TestTensor base = RandomTensor("w", {256, 512}, 1, DType::kF32, 0.5f);
  MustPush(WriteModel("base", {Converted(base, base_dtype)}));
  const std::string folder = WriteModel("ft", {Converted(Finetuned(base, 2, 0.002f), dtype)});
  const PushReport report = MustPush(folder);
  ExpectStored("ft", folder);
  // F64 copies of F32 values end in 29 zero bits, which zstd takes better than any delta does.
  if (base_dtype == DType::kBF16 && (dtype == DType::kF16 || dtype == DType::kF32)) {
    EXPECT_EQ(report.base, "base");
  }
}

std::vector<std::pair<DType, DType>> FloatPairs() {
  const DType floats[] = {DType::kBF16, DType::kF16, DType::kF32, DType::kF64, DType::kF8E4M3, DType::kF8E5M2};
  std::vector<std::pair<DType, DType>> pairs;
  for (const DType base : floats) {
    for (const DType dtype : floats) pairs.emplace_back(base, dtype);
  }
  return pairs;
}
INSTANTIATE_TEST_SUITE_P(Floats, DTypePushTest, ::testing::ValuesIn(FloatPairs()), [](const auto& param) {
  return std::string(DTypeName(param.param.first)) + "_" + std::string(DTypeName(param.param.second));
});

TEST_F(PushTest, Fp32CopyOfABf16FinetuneCostsWhatTheFinetuneCosts) {
  const TestTensor base = RandomTensor("w", {512, 512}, 1);
  const TestTensor finetuned = Finetuned(base, 2);
  MustPush(WriteModel("base", {base}));
  const PushReport bf16 = MustPush(WriteModel("ft", {finetuned}));
  const std::string wide = WriteModel("ft32", {Converted(finetuned, DType::kF32)});
  const PushReport f32 = MustPush(wide);
  EXPECT_LT(f32.stored_bytes, bf16.stored_bytes * 105 / 100 + 500);
  ExpectStored("ft32", wide);
}

TEST_F(PushTest, EveryDTypeAndOddShapes) {
  std::vector<TestTensor> tensors;
  for (int number = 1; number < kDTypeCount; ++number) {
    const DType dtype = static_cast<DType>(number);
    Bytes bytes = NoiseBytes(static_cast<uint64_t>(number), 3 * 1001 * DTypeBytes(dtype));
    if (dtype == DType::kBool) {
      for (std::byte& b : bytes) b &= std::byte{1};
    }
    tensors.push_back({"t" + std::to_string(number), dtype, {3, 1001}, std::move(bytes)});
  }
  tensors.push_back({"scalar", DType::kF32, {}, NoiseBytes(90, 4)});
  tensors.push_back({"empty", DType::kBF16, {0, 576}, {}});
  tensors.push_back({"empty too", DType::kF32, {0}, {}});
  const std::string folder = WriteModel("m", tensors);
  MustPush(folder);
  ExpectStored("m", folder);
  EXPECT_EQ(TensorOf("m", "empty").shape, (std::vector<uint64_t>{0, 576}));
  EXPECT_EQ(TensorOf("m", "scalar").shape, std::vector<uint64_t>{});
  EXPECT_LT(TensorOf("m", "t1").stored_bytes, 3003u) << "bool is compressed";
  MustPush(WriteModel("m2", tensors));
  ExpectClean();
}

TEST_F(PushTest, SpecialValuesAreBitExactInDeltas) {
  // Every 16-bit pattern against shuffled ones: NaN payloads, infinities, -0, denormals.
  TestTensor base = RandomTensor("w", {1024, 256}, 1);
  TestTensor finetuned = Finetuned(base, 2);
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t value = static_cast<uint16_t>(pattern);
    const uint16_t other = static_cast<uint16_t>(pattern * 40503u);
    std::memcpy(finetuned.bytes.data() + size_t{pattern} * 2, &value, 2);
    if (pattern % 3 == 0) std::memcpy(base.bytes.data() + size_t{pattern} * 2, &other, 2);
  }
  MustPush(WriteModel("base", {base}));
  const std::string folder = WriteModel("ft", {finetuned});
  MustPush(folder, {"ft", PushOptions::Base::kNamed, "base"});
  ExpectStored("ft", folder);
}

TEST_F(PushTest, ResizedEmbeddingSharesItsCommonRows) {
  std::vector<TestTensor> base = SmallModel(1);
  MustPush(WriteModel("base", base));
  std::vector<TestTensor> resized = FinetunedModel(base, 50);
  const TestTensor extra = RandomTensor("extra", {16, 128}, 77);
  resized[0].shape[0] += 16;
  resized[0].bytes.insert(resized[0].bytes.end(), extra.bytes.begin(), extra.bytes.end());
  const std::string grown = WriteModel("grown", resized);
  MustPush(grown);
  EXPECT_EQ(TensorOf("grown", "embed").encoding, "delta");
  ExpectStored("grown", grown);

  resized[0].shape[0] = 1000;
  resized[0].bytes.resize(1000 * 128 * 2);
  const std::string cut = WriteModel("cut", resized);
  MustPush(cut);
  EXPECT_EQ(TensorOf("cut", "embed").encoding, "delta");
  ExpectStored("cut", cut);
}

TEST_F(PushTest, EmptyFolderEmptyFileAndGaps) {
  fs::create_directories(temp() + "/sources/nothing");
  EXPECT_EQ(MustPush(temp() + "/sources/nothing").logical_bytes, 0u);
  const std::string empty = WriteSource("empty", "zero.bin", {});
  WriteSource("empty", "zero.safetensors", {});
  MustPush(empty);
  ExpectStored("empty", empty);
  EXPECT_EQ(UsageOf("nothing").kind, "files");

  // Padding within and after the tensors: small gaps are literals, large ones content.
  const std::string json = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[10,14]},)"
                           R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5000,5004]}})";
  ByteWriter file;
  file.U64(json.size());
  file.Append(AsBytes(json));
  file.Append(NoiseBytes(1, 6000));
  const std::string gaps = WriteSource("gaps", "g.safetensors", file.view());
  MustPush(gaps);
  ExpectStored("gaps", gaps);
  EXPECT_EQ(TensorOf("gaps", "b").logical_bytes, 4u);
  EXPECT_TRUE(warnings_.size() <= 1) << warnings_[1];
  ExpectClean();
}

TEST_F(PushTest, MalformedSafetensorsAreContentWithAWarning) {
  Bytes file = SafetensorsFile(SmallModel(1));
  file.resize(file.size() - 1000);
  WriteSource("m", "cut.safetensors", file);
  ByteWriter huge;
  huge.U64(uint64_t{1} << 62);
  huge.Append(AsBytes("{}"));
  const std::string folder = WriteSource("m", "huge.safetensors", huge.view());
  const PushReport report = MustPush(folder);
  EXPECT_EQ(report.content_bytes, report.logical_bytes);
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_NE(warnings_[0].find("cut.safetensors"), std::string::npos) << warnings_[0];
  EXPECT_NE(warnings_[0].find("plain content"), std::string::npos) << warnings_[0];
  ExpectStored("m", folder);
}

TEST_F(PushTest, WhatLiesInsteadOfASafetensorsFileIsNamed) {
  for (const auto& [text, expected] : std::initializer_list<std::pair<std::string, const char*>>{
           {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n", "a git-lfs pointer"},
           {"<!DOCTYPE html><html><head><title>403</title></head></html>\n", "an HTML page"},
           {"\n <HTML><body>no</body></HTML>", "an HTML page"},
           {"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "an XML document"},
           {"{\"error\": \"not found\"}", "a JSON document"},
           {std::string("PK\x03\x04") + std::string(60, 'x'), "a zip archive"},
           {"GGUF" + std::string(60, 'x'), "a GGUF file"},
           {std::string(5000, '\0'), "zeros"},
           {"", "an empty file"},
           {std::string(100, 'x'), "safetensors header"}}) {
    const std::string name = "m" + std::to_string(warnings_.size());
    const std::string folder = WriteSource(name, "model.safetensors", AsBytes(text));
    const size_t before = warnings_.size();
    MustPush(folder);
    ASSERT_EQ(warnings_.size(), before + 1) << expected;
    EXPECT_NE(warnings_.back().find(expected), std::string::npos) << warnings_.back();
    ExpectStored(name, folder);
  }
}

TEST_F(PushTest, ShardsThatAreMissingAreNamed) {
  const auto write = [&](const std::string& name, const std::string& index) {
    WriteSource(name, "part/model-1.safetensors", SafetensorsFile(SmallModel(1)));
    return WriteSource(name, "part/model.safetensors.index.json", AsBytes(index));
  };
  MustPush(write("whole", R"({"weight_map": {"a": "model-1.safetensors"}})"));
  EXPECT_TRUE(warnings_.empty()) << warnings_[0];
  const std::string folder = write("cut", R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors",
      "c": "/etc/passwd", "d": "../x", "e": "m4", "f": "m5", "g": "m6"}})");
  MustPush(folder);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(
      warnings_[0].find("part/model.safetensors.index.json names 6 files that the model has not: ../x, /etc/passwd, "
                        "m4, m5, m6 and 1 more"),
      std::string::npos)
      << warnings_[0];
  ExpectStored("cut", folder);
  MustPush(write("broken", R"({"weight_map": )"));
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_NE(warnings_[1].find("is no JSON"), std::string::npos) << warnings_[1];
}

// The hub's cache has the files under their hashes, a clone with git-lfs has them twice.
TEST_F(PushTest, SafetensorsAreKnownByTheirBytes) {
  const auto push = [&](const std::string& name, const std::vector<TestTensor>& tensors) {
    const Bytes file = SafetensorsFile(tensors);
    WriteSource(name, "blobs/0123abcd", file);
    WriteSource(name, "MODEL.SAFETENSORS", file);
    return MustPush(WriteSource(name, "snapshots/1/model.safetensors", file));
  };
  const std::vector<TestTensor> model = SmallModel(1);
  EXPECT_EQ(push("base", model).identical_file_bytes, 2 * SafetensorsFile(model).size());
  const PushReport tuned = push("tuned", FinetunedModel(model, 2));
  EXPECT_EQ(tuned.base, "base");
  EXPECT_GT(tuned.delta_bytes, SafetensorsFile(model).size() / 2);
  EXPECT_TRUE(warnings_.empty());
  ExpectStored("tuned", temp() + "/sources/tuned");
  // What only looks like one is content, and nobody called it one.
  Bytes cut = SafetensorsFile(model);
  cut.resize(cut.size() - 1000);
  MustPush(WriteSource("cut", "blob", cut));
  EXPECT_TRUE(warnings_.empty()) << warnings_[0];
  ExpectClean();
}

// As a build that went by names stored it: no reading of its beginning alone shows what it is.
class ContentOnly : public SourceContent {
 public:
  explicit ContentOnly(Bytes bytes) : bytes_(std::move(bytes)) {}
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    if (offset == 0 && out.size() < 4096) std::fill(out.begin(), out.end(), std::byte{0});
    return OkStatus();
  }

 private:
  const Bytes bytes_;
};

TEST_F(PushTest, ContentBecomesTensorsWhenItIsPushedAgain) {
  const std::vector<TestTensor> model = SmallModel(1);
  const Bytes bytes = SafetensorsFile(model);
  SourceFile file;
  file.path = file.shown_as = "blobs/0123abcd";
  file.bytes = bytes.size();
  file.mode = 0644;
  file.content = std::make_shared<ContentOnly>(bytes);
  PushOptions options;
  options.name = "old";
  const Result<PushReport> old = Push(catalog(), SourceTree::OfContent("old", {file}), options, job_);
  ASSERT_OK(old.status());
  EXPECT_EQ(old->content_bytes, bytes.size());
  EXPECT_EQ(ReadStored("old", file.path), bytes);

  const std::string folder = WriteModel("base", model);
  const PushReport base = MustPush(folder);
  EXPECT_EQ(base.identical_file_bytes, 0u);
  EXPECT_GT(base.self_bytes, bytes.size() / 2);
  EXPECT_EQ(ReadStored("old", file.path), bytes);
  const PushReport tuned = MustPush(WriteModel("tuned", FinetunedModel(model, 2)));
  EXPECT_GT(tuned.delta_bytes, bytes.size() / 2);
  EXPECT_EQ(MustPush(folder,
                     [] {
                       PushOptions again;
                       again.name = "again";
                       return again;
                     }())
                .identical_file_bytes,
            bytes.size());
  ExpectClean();
  // The content that it was waits for prune.
  const Result<PruneReport> pruned = Prune(catalog(), false, job_);
  ASSERT_OK(pruned.status());
  ExpectClean();
  Reopen();
  EXPECT_EQ(ReadStored("old", file.path), bytes);
  ExpectStored("base", folder);
  ExpectStored("tuned", temp() + "/sources/tuned");
  ExpectClean();
}

TEST_F(PushTest, UnknownDTypeIsKeptAsBytes) {
  const std::string json = R"({"q":{"dtype":"F4_X","shape":[64],"data_offsets":[0,32]}})";
  ByteWriter file;
  file.U64(json.size());
  file.Append(AsBytes(json));
  file.Append(NoiseBytes(1, 32));
  const std::string folder = WriteSource("m", "q.safetensors", file.view());
  MustPush(folder);
  ExpectStored("m", folder);
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(PushTest, FollowsLinksToFilesAndRefusesTheRest) {
  const std::string folder = WriteModel("m", SmallModel(1));
  const std::string outside = WriteSource("elsewhere", "blob", NoiseBytes(1, 3000)) + "/blob";
  fs::create_symlink(outside, folder + "/linked.bin");
  fs::create_symlink(folder, temp() + "/link-to-folder");
  const PushReport report = MustPush(temp() + "/link-to-folder");
  EXPECT_EQ(report.name, "link-to-folder");
  EXPECT_TRUE(ReadStored("link-to-folder", "linked.bin") == ReadPath(outside));

  const auto expect_refused = [&](const std::string& entry) {
    const Result<PushReport> refused = PushPath(folder, {"refused", PushOptions::Base::kAuto, ""});
    EXPECT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find(entry), std::string::npos) << refused.status().ToString();
    fs::remove(folder + "/" + entry);
  };
  fs::create_directory_symlink(temp(), folder + "/folder-link");
  expect_refused("folder-link");
  fs::create_symlink(temp() + "/nowhere", folder + "/dangling");
  expect_refused("dangling");
  ASSERT_EQ(mkfifo((folder + "/fifo").c_str(), 0600), 0);
  expect_refused("fifo");
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT((folder + "/socket").size(), sizeof address.sun_path);
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", folder.c_str());
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  expect_refused("socket");
  close(fd);
  EXPECT_EQ(PushPath(temp() + "/nowhere").status().code(), StatusCode::kNotFound);
}

TEST_F(PushTest, NamesAreCheckedAndTaken) {
  const std::string folder = WriteSource("m", "f", AsBytes("x"));
  const auto push = [&](const std::string& name) {
    return PushPath(folder, {name, PushOptions::Base::kAuto, ""}).status().code();
  };
  EXPECT_EQ(push("team/model"), StatusCode::kOk);
  EXPECT_EQ(push("team/model"), StatusCode::kAlreadyExists);
  EXPECT_EQ(push("team"), StatusCode::kAlreadyExists);
  EXPECT_EQ(push("team/model/x"), StatusCode::kAlreadyExists);
  EXPECT_EQ(push("team/model2"), StatusCode::kOk);
  EXPECT_EQ(push("../x"), StatusCode::kInvalidArgument);
  EXPECT_EQ(push("a//b"), StatusCode::kInvalidArgument);
  EXPECT_EQ(ModelNames(), (std::vector<std::string>{"team/model", "team/model2"}));
}

TEST_F(PushTest, SparseFilesAndManySmallOnes) {
  const std::string folder = WriteSource("m", "a0", AsBytes("first"));
  std::ofstream(folder + "/sparse").close();
  fs::resize_file(folder + "/sparse", 5'000'000);
  for (int i = 1; i < 200; ++i) WriteSource("m", "a" + std::to_string(i), NoiseBytes(static_cast<uint64_t>(i), 50));
  const PushReport report = MustPush(folder);
  EXPECT_LT(report.stored_bytes, 200'000u);
  ExpectStored("m", folder);
}

// Does `act` when the push reports its first progress beyond the start.
class ActingJob {
 public:
  explicit ActingJob(std::function<void(JobControl&)> act) {
    job = std::make_unique<JobControl>([this, act = std::move(act)](const JobProgress& progress) {
      if (progress.phase == "storing" && !acted.exchange(true)) act(*job);
    });
  }
  std::atomic<bool> acted{false};
  std::unique_ptr<JobControl> job;
};

TEST_F(PushTest, SourceThatChangesOrVanishesIsRefused) {
  const std::string folder = WriteModel("m", SmallModel(1));
  const std::string path = folder + "/model.safetensors";
  const Bytes good = ReadPath(path);
  const std::function<void(JobControl&)> acts[] = {
      [&](JobControl&) { fs::resize_file(path, good.size() / 2); },
      [&](JobControl&) { fs::resize_file(path, good.size() + 1); },
      [&](JobControl&) {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(good.size() - 100));
        file.write("changed", 7);
      },
      [&](JobControl&) { fs::remove(path); },
      [&](JobControl&) {
        WritePath(path + ".new", good);
        fs::rename(path + ".new", path);
      },
  };
  for (const auto& act : acts) {
    WritePath(path, good);
    // An mtime in the past: a write within the clock's granularity must still show.
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(1));
    ActingJob acting(act);
    const Result<PushReport> report = PushWith(folder, {}, *acting.job);
    EXPECT_TRUE(acting.acted);
    EXPECT_EQ(report.status().code(), StatusCode::kIo) << report.status().ToString();
    EXPECT_NE(report.status().message().find("model.safetensors"), std::string::npos) << report.status().ToString();
    EXPECT_TRUE(ModelNames().empty());
    EXPECT_EQ(CountKeys(Family::kBlocks), 0u) << "rolled back";
  }
}

TEST_F(PushTest, CancelRollsBack) {
  const std::string folder = WriteModel("m", SmallModel(1));
  ActingJob acting([](JobControl& job) { job.Cancel(); });
  EXPECT_EQ(PushWith(folder, {}, *acting.job).status().code(), StatusCode::kCancelled);
  EXPECT_TRUE(ModelNames().empty());
  EXPECT_EQ(CountKeys(Family::kBlocks), 0u);
  EXPECT_EQ(CountKeys(Family::kTensors), 0u);
  MustPush(folder);
  ExpectStored("m", folder);
}

TEST_F(PushTest, OfTwoPushesOfOneNameOneWins) {
  const std::string a = WriteModel("a", SmallModel(1));
  const std::string b = WriteModel("b", SmallModel(1));
  WriteSource("b", "more.txt", AsBytes("so that the files differ"));
  for (int round = 0; round < 4; ++round) {
    const std::string name = "same" + std::to_string(round);
    catalog();
    StatusCode codes[2];
    const std::string* folders[2] = {&a, &b};
    {
      std::vector<std::thread> threads;
      for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
          JobControl job;
          codes[i] = PushWith(*folders[i], {name, PushOptions::Base::kAuto, ""}, job).status().code();
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    EXPECT_TRUE((codes[0] == StatusCode::kOk && codes[1] == StatusCode::kAlreadyExists) ||
                (codes[1] == StatusCode::kOk && codes[0] == StatusCode::kAlreadyExists));
    ExpectStored(name, codes[0] == StatusCode::kOk ? a : b);
  }
  ExpectClean();
}

TEST_F(PushTest, PushesAtOnceOfOneContentShareIt) {
  const std::string a = WriteModel("a", SmallModel(1));
  std::vector<TestTensor> reversed = SmallModel(1);
  std::swap(reversed[1], reversed[3]);
  const std::string b = WriteModel("b", reversed);
  catalog();
  std::thread other([&] {
    JobControl job;
    EXPECT_OK(PushWith(a, {}, job).status());
  });
  JobControl job;
  EXPECT_OK(PushWith(b, {}, job).status());
  other.join();
  ExpectStored("a", a);
  ExpectStored("b", b);
  // 6 tensors, 2 headers: whoever came second left nothing of its own behind.
  EXPECT_EQ(CountKeys(Family::kTensors), 8u);
  EXPECT_EQ(CountKeys(Family::kBlocks), 8u);
}

TEST_F(PushTest, ContentsOfOneHashAreToldApart) {
  const TestTensor mine = RandomTensor("w", {256, 256}, 1);
  MustPush(WriteModel("a", {mine}));
  // A collision cannot be made here, but its effect can: the record under this tensor's hash gets other bytes.
  const TestTensor other = RandomTensor("w", {256, 256}, 2);
  MustPush(WriteModel("b", {other}));
  Hasher128 mine_hash = StartTensorHash(mine.dtype, mine.shape);
  mine_hash.Update(mine.bytes);
  Hasher128 other_hash = StartTensorHash(other.dtype, other.shape);
  other_hash.Update(other.bytes);
  const std::string mine_key = TensorKey({mine_hash.Finish(), 0});
  {
    // Values read from a store die before it.
    const Result<StoredValue> foreign = catalog().store().Get(Family::kTensors, TensorKey({other_hash.Finish(), 0}));
    ASSERT_OK(foreign.status());
    WriteBatch batch;
    batch.Put(Family::kTensors, mine_key, foreign->bytes());
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
  }
  Reopen();
  const std::string folder = WriteModel("c", {mine, RandomTensor("more", {8}, 3)});
  MustPush(folder, {"c", PushOptions::Base::kNone, ""});
  ExpectStored("c", folder);
  EXPECT_OK(catalog().store().Get(Family::kTensors, TensorKey({mine_hash.Finish(), 1})).status());
}

// Made by hand: XXH3 adds to its sums for each 8 bytes their value, and the product of the halves of their value XOR a
// secret. Where the low half is the secret's, that product is 0 whatever the high half is; two such places of one lane,
// whose high halves have the same sum, give the same hash.
TestTensor OfOneHash(const std::string& name, uint32_t variant) {
  constexpr size_t kHeaderBytes = 13;  // dtype, rank and one dimension, hashed before the content
  constexpr size_t kPlaces[] = {128 - kHeaderBytes, 192 - kHeaderBytes};
  constexpr uint8_t kSecrets[][4] = {{0xde, 0xd4, 0x6d, 0xe9}, {0x72, 0x40, 0xa4, 0xa4}};
  TestTensor tensor{name, DType::kU8, {2000}, NoiseBytes(1, 2000)};
  for (size_t i = 0; i < 2; ++i) {
    const uint32_t high = i == 0 ? variant : 1000 - variant;
    std::memcpy(&tensor.bytes[kPlaces[i]], kSecrets[i], sizeof kSecrets[i]);
    std::memcpy(&tensor.bytes[kPlaces[i] + 4], &high, sizeof high);
  }
  return tensor;
}

TEST_F(PushTest, ContentsThatSomebodyMadeOfOneHashAreToldApart) {
  const auto hash_of = [](const TestTensor& tensor) {
    Hasher128 hasher = StartTensorHash(tensor.dtype, tensor.shape);
    hasher.Update(tensor.bytes);
    return hasher.Finish();
  };
  ASSERT_EQ(hash_of(OfOneHash("a", 1)), hash_of(OfOneHash("b", 2)));
  const std::string first = WriteModel("first", {OfOneHash("a", 1)});
  MustPush(first);
  // Several in one push, some of them twice, one of them stored already.
  std::vector<TestTensor> tensors;
  for (uint32_t i = 0; i < 12; ++i) tensors.push_back(OfOneHash("t" + std::to_string(i), i % 6));
  const std::string many = WriteModel("many", tensors);
  MustPush(many);
  const std::string more = WriteModel("more", {OfOneHash("x", 70), OfOneHash("y", 3)});
  MustPush(more);
  uint64_t contents = 0;
  ASSERT_OK(catalog().store().ScanKeys(Family::kTensors, TensorKeyPrefix(hash_of(tensors[0])), [&](std::string_view) {
    ++contents;
    return OkStatus();
  }));
  EXPECT_EQ(contents, 7u);
  ExpectStored("first", first);
  ExpectStored("many", many);
  ExpectStored("more", more);
  ExpectClean();
}

// A source may have to wait for the memory of the very engine, as a stored model does.
class WaitingContent : public SourceContent {
 public:
  explicit WaitingContent(Bytes bytes) : bytes_(std::move(bytes)) {}
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    EXPECT_LE(BlockRef::HeldHere(), 0);
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return OkStatus();
  }

 private:
  const Bytes bytes_;
};

TEST_F(PushTest, NobodyHoldsABlockWhileTheSourceIsRead) {
  const auto push = [&](const std::string& name) {
    // Too large to be held: it is read again for each pass.
    SourceFile file;
    file.path = "noise.bin";
    file.shown_as = "noise";
    file.bytes = 24 << 20;
    file.content = std::make_shared<WaitingContent>(NoiseBytes(1, file.bytes));
    const SourceTree source = SourceTree::OfContent(name, {file});
    PushOptions options;
    options.name = name;
    const Result<PushReport> report = Push(catalog(), source, options, job_);
    EXPECT_OK(report.status());
    return report.ok() ? *report : PushReport{};
  };
  push("first");
  MustPush(WriteModel("other", {RandomTensor("w", {64, 64}, 1)}));
  const PushReport again = push("again");
  EXPECT_EQ(again.identical_file_bytes, again.logical_bytes);
}

TEST_F(PushTest, LargeTensorsStreamThroughASmallBudget) {
  // 24 MiB: beyond what one thread of a 128 MiB process may hold.
  const TestTensor base = RandomTensor("w", {6144, 2048}, 1);
  MustPush(WriteModel("base", {base}));
  const std::string folder = WriteModel("ft", {Finetuned(base, 2)});
  EXPECT_EQ(MustPush(folder).base, "base");
  ExpectStored("ft", folder);
}

// The pair of docs' targets; needs the models themselves.
TEST_F(PushTest, RealPairMeetsItsTargets) {
  const char* models = std::getenv("MODELSTORE_REALMODELS");
  if (models == nullptr)
    GTEST_SKIP() << "set MODELSTORE_REALMODELS to a folder with smollm2-135m and smollm2-135m-kdoc";
  const PushReport base = MustPush(std::string(models) + "/smollm2-135m");
  EXPECT_LE(static_cast<double>(base.stored_bytes) / static_cast<double>(base.logical_bytes), 0.6575);
  const PushReport finetune = MustPush(std::string(models) + "/smollm2-135m-kdoc");
  EXPECT_EQ(finetune.base, "smollm2-135m");
  EXPECT_LE(static_cast<double>(finetune.stored_bytes) / static_cast<double>(finetune.logical_bytes), 0.108);
  ExpectClean();
  const Result<StoreReport> report = MakeReport(catalog());
  ASSERT_OK(report.status());
  EXPECT_LE(report->disk_bytes, report->stored_bytes + report->stored_bytes / 50);
}

}  // namespace
}  // namespace modelstore
