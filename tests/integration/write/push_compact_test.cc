// Compact pushes: what is stored, how far from the finetune it is, budgets, moments that are not this model's, and
// making stored models compact.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <thread>

#include "catalog/read/fidelity_note.h"
#include "catalog/write/compact_model.h"
#include "catalog/write/folder_sink.h"
#include "codec/decode/block_decoder.h"
#include "tests/integration/write/model_fixture.h"

namespace modelstore {
namespace {

constexpr uint64_t kRank = 3;

std::vector<float> Floats(const Bytes& bytes, DType dtype) {
  std::vector<float> out(bytes.size() / DTypeBytes(dtype));
  ConvertElements(dtype, DType::kF32, bytes, std::as_writable_bytes(std::span(out)));
  return out;
}

// `base` with a low-rank change and a little noise on each matrix, as a finetune makes it; norms with noise only.
std::vector<TestTensor> LowRankFinetune(const std::vector<TestTensor>& base, uint64_t seed) {
  std::vector<TestTensor> out;
  for (const TestTensor& tensor : base) {
    if (tensor.shape.size() < 2) {
      out.push_back(Finetuned(tensor, seed++));
      continue;
    }
    const uint64_t columns = tensor.shape.back(), rows = tensor.bytes.size() / DTypeBytes(tensor.dtype) / columns;
    const TestTensor left = RandomTensor("u", {rows, kRank}, seed++, DType::kF32, 0.02f);
    const TestTensor right = RandomTensor("v", {kRank, columns}, seed++, DType::kF32, 0.2f);
    const std::vector<float> u = Floats(left.bytes, DType::kF32), v = Floats(right.bytes, DType::kF32);
    std::vector<float> values = Floats(tensor.bytes, tensor.dtype);
    for (uint64_t i = 0; i < values.size(); ++i) {
      for (uint64_t k = 0; k < kRank; ++k) values[i] += u[i / columns * kRank + k] * v[k * columns + i % columns];
    }
    TestTensor tuned = tensor;
    ConvertElements(DType::kF32, tensor.dtype, std::as_bytes(std::span(values)), tuned.bytes);
    out.push_back(Finetuned(tuned, seed++, 0.0002f));
  }
  return out;
}

class CompactPushTest : public ModelTest {
 protected:
  CompactPushTest() : base_(SmallModel(1)), tuned_(LowRankFinetune(base_, 50)) {
    MustPush(WriteModel("base", base_));
    folder_ = WriteModel("ft", tuned_);
    WriteSource("ft", "notes.txt", AsBytes("notes"));
  }

  static PushOptions Options(const std::string& name, CompactOptions compact) {
    PushOptions options;
    options.name = name;
    options.compact = std::move(compact);
    return options;
  }
  static PushOptions OfRank(const std::string& name, uint32_t rank, float residual_step = 0) {
    CompactOptions compact;
    compact.choice.emplace();
    compact.choice->rank = rank;
    compact.choice->factor_step = 1;  // what these expect of a rank does not hang on the default
    compact.choice->residual_step = residual_step;
    return Options(name, compact);
  }
  static PushOptions OfRatio(const std::string& name, double ratio) {
    CompactOptions compact;
    compact.target_ratio = ratio;
    return Options(name, compact);
  }
  static PushOptions OfDrift(const std::string& name, double drift) {
    CompactOptions compact;
    compact.max_drift = drift;
    return Options(name, compact);
  }

  // Damages what a push of this residual step made, block by block, and pushes the same again.
  void ExpectMended(float step);

  // |read - finetune|^2 / |finetune - base|^2 of one tensor, as it is read.
  double ReadDrift(const std::string& model, const std::vector<TestTensor>& tuned, size_t index) {
    const Bytes header = SafetensorsFile(tuned);
    uint64_t begin = header.size();
    for (size_t i = tuned.size(); i-- > index;) begin -= tuned[i].bytes.size();
    const Bytes file = ReadStored(model, "model.safetensors");
    const TestTensor& tensor = tuned[index];
    const Bytes own(file.begin() + static_cast<ptrdiff_t>(begin),
                    file.begin() + static_cast<ptrdiff_t>(begin + tensor.bytes.size()));
    const std::vector<float> read = Floats(own, tensor.dtype), wanted = Floats(tensor.bytes, tensor.dtype),
                             base = Floats(base_[index].bytes, base_[index].dtype);
    double error = 0, energy = 0;
    for (size_t i = 0; i < read.size(); ++i) {
      error += std::pow(double{read[i]} - wanted[i], 2);
      energy += std::pow(double{wanted[i]} - base[i], 2);
    }
    return error / energy;
  }

  // H of every matrix: random inputs with a few strong directions.
  std::vector<TestTensor> Moments(uint64_t seed) {
    std::vector<TestTensor> out;
    for (const TestTensor& tensor : base_) {
      if (tensor.shape.size() < 2) continue;
      const uint64_t n = tensor.shape.back();
      const std::vector<float> x = Floats(RandomTensor("x", {2 * n, n}, seed++, DType::kF32, 1).bytes, DType::kF32);
      std::vector<float> h(n * n);
      for (uint64_t i = 0; i < n; ++i) {
        for (uint64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (uint64_t k = 0; k < 2 * n; ++k) sum += double{x[k * n + i]} * x[k * n + j];
          h[i * n + j] = h[j * n + i] =
              static_cast<float>(sum / static_cast<double>(2 * n)) * (i < 4 && j < 4 ? 30 : 1);
        }
      }
      const ByteSpan bytes = std::as_bytes(std::span(h));
      out.push_back({tensor.name, DType::kF32, {n, n}, Bytes(bytes.begin(), bytes.end())});
    }
    const uint64_t rows = base_[0].shape[0];
    std::vector<float> weights(2 * rows, 1.0f / static_cast<float>(rows));
    const ByteSpan bytes = std::as_bytes(std::span(weights));
    out.push_back({base_[0].name + ".rows", DType::kF32, {rows, 2}, Bytes(bytes.begin(), bytes.end())});
    return out;
  }
  Result<PushReport> PushWithMoments(const std::string& name, const std::vector<TestTensor>& moments) {
    const std::string folder = WriteSource("moments-" + name, "m.safetensors", SafetensorsFile(moments));
    Result<SourceTree> tree = SourceTree::Scan(folder + "/m.safetensors");
    EXPECT_OK(tree.status());
    PushOptions options = OfRank(name, 2);
    options.compact->moments = &*tree;
    return PushPath(folder_, options);
  }
  // Nothing of a push is left: no model of the name, nothing that prune finds.
  void ExpectNothingOf(const std::string& name) {
    EXPECT_EQ(catalog().FindModel(name).status().code(), StatusCode::kNotFound);
    const Result<PruneReport> pruned = Prune(catalog(), false, job_);
    ASSERT_OK(pruned.status());
    EXPECT_EQ(pruned->tensors, 0u);
    EXPECT_EQ(pruned->blocks, 0u);
    ExpectClean();
  }

  std::vector<TestTensor> base_, tuned_;
  std::string folder_;
};

TEST_F(CompactPushTest, StoresLowRankAndReadsWhatItMeasured) {
  const PushReport report = MustPush(folder_, OfRank("c", kRank));
  EXPECT_EQ(report.fidelity, Fidelity::kCompact);
  EXPECT_EQ(report.drift_kind, DriftKind::kPlain);
  EXPECT_EQ(report.base, "base");
  EXPECT_TRUE(report.verified);
  EXPECT_GT(report.drift, 0);
  EXPECT_LT(report.drift, 0.5);
  EXPECT_LT(report.stored_bytes, report.logical_bytes / 20);
  EXPECT_GT(report.compact_bytes, report.logical_bytes * 9 / 10);
  // The measure leaves rounding out, which adds about a unit in the last place.
  for (size_t i = 0; i < 4; ++i) EXPECT_LT(ReadDrift("c", tuned_, i), 0.7) << tuned_[i].name;
  EXPECT_EQ(TensorOf("c", "layers.0.up").encoding, "compact");
  EXPECT_EQ(UsageOf("c").fidelity, "compact");
  EXPECT_EQ(UsageOf("c").drift, report.drift);
  const Bytes content = ReadStored("c", "model.safetensors");
  ExpectClean();
  Reopen();
  EXPECT_EQ(ReadStored("c", "model.safetensors"), content) << "the same at every read";
  EXPECT_EQ(ReadStored("c", "notes.txt"), Bytes(AsBytes("notes").begin(), AsBytes("notes").end()));
  ExpectClean();
}

TEST_F(CompactPushTest, SmallTensorsAndHeadersStayExactInOneBundle) {
  const uint64_t tensors = CountKeys(Family::kTensors);
  MustPush(folder_, OfRank("c", kRank));
  const Bytes file = ReadStored("c", "model.safetensors"), source = SafetensorsFile(tuned_);
  ASSERT_EQ(file.size(), source.size());
  uint64_t exact = 0;
  for (const TestTensor& tensor : tuned_) {
    if (tensor.shape.size() < 2) exact += tensor.bytes.size();
  }
  EXPECT_TRUE(std::equal(source.end() - static_cast<ptrdiff_t>(exact), source.end(),
                         file.end() - static_cast<ptrdiff_t>(exact)))
      << "norms are the last tensors of the file";
  EXPECT_TRUE(std::equal(source.begin(), source.begin() + 200, file.begin()));
  // Compact tensor, its factors and scales, the bundle, header, notes.
  EXPECT_LE(CountKeys(Family::kTensors), tensors + 6);
}

TEST_F(CompactPushTest, IsStoredOnce) {
  const PushReport first = MustPush(folder_, OfRank("c", kRank));
  const PushReport again = MustPush(folder_, OfRank("again", kRank));
  EXPECT_EQ(again.identical_file_bytes, again.logical_bytes);
  EXPECT_LT(again.stored_bytes, 2000u);
  EXPECT_EQ(again.drift, first.drift);
  ASSERT_OK(Remove(catalog(), "c", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_FALSE(ReadStored("again", "model.safetensors").empty());
  ExpectClean();
}

TEST_F(CompactPushTest, RemovedAndPrunedLeavesNothing) {
  const uint64_t blocks = CountKeys(Family::kBlocks), tensors = CountKeys(Family::kTensors);
  MustPush(folder_, OfRank("c", kRank, 1));
  EXPECT_GT(CountKeys(Family::kBlocks), blocks);
  EXPECT_EQ(Remove(catalog(), "base", false, job_).status().code(), StatusCode::kHasDependents);
  ASSERT_OK(Remove(catalog(), "c", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_EQ(CountKeys(Family::kBlocks), blocks);
  EXPECT_EQ(CountKeys(Family::kTensors), tensors);
  ExpectClean();
}

TEST_F(CompactPushTest, MoreIsNearer) {
  MustPush(folder_, OfRank("first", 2));  // pays for what all share
  const PushReport none = MustPush(folder_, OfRank("r1", 1)), low = MustPush(folder_, OfRank("r3", 3)),
                   residual = MustPush(folder_, OfRank("res", 3, 1));
  EXPECT_GT(none.drift, low.drift);
  EXPECT_GT(low.drift, residual.drift);
  EXPECT_LT(none.stored_bytes, low.stored_bytes);
  EXPECT_LT(low.stored_bytes, residual.stored_bytes);
  EXPECT_TRUE(TensorOf("res", "embed").has_residual);
  ExpectClean();
}

TEST_F(CompactPushTest, LiteralGptZip) {
  CompactOptions compact;
  compact.choice.emplace();
  compact.choice->bits = 2;
  compact.choice->sparsity = 0.9f;
  compact.choice->group_elems = 1024;
  const PushReport report = MustPush(folder_, Options("z", compact));
  EXPECT_LT(report.drift, 0.9);
  EXPECT_THAT(report.method, ::testing::HasSubstr("GPT-Zip"));
  ExpectClean();
}

TEST_F(CompactPushTest, EveryFloatingPointType) {
  for (const DType dtype : {DType::kF16, DType::kF32, DType::kF64}) {
    const std::string name(DTypeName(dtype));
    std::vector<TestTensor> base, tuned;
    for (const TestTensor& tensor : base_) base.push_back(Converted(tensor, dtype));
    for (const TestTensor& tensor : tuned_) tuned.push_back(Converted(tensor, dtype));
    MustPush(WriteModel("base-" + name, base), {"base-" + name, PushOptions::Base::kNone, ""});
    const PushReport report = MustPush(WriteModel("ft-" + name, tuned), OfRank("c-" + name, kRank));
    EXPECT_LT(report.drift, 0.5) << name;
    EXPECT_LT(ReadDrift("c-" + name, tuned, 1), 0.5) << name;
  }
  ExpectClean();
}

TEST_F(CompactPushTest, MeetsATargetRatio) {
  double drift = 0;
  for (const double ratio : {10.0, 20.0, 40.0}) {
    const PushReport report = MustPush(folder_, OfRatio("t" + std::to_string(static_cast<int>(ratio)), ratio));
    EXPECT_LE(static_cast<double>(report.stored_bytes) * ratio, static_cast<double>(report.logical_bytes)) << ratio;
    EXPECT_GE(report.drift, drift) << "a larger budget never gives a larger error";
    drift = report.drift;
  }
  ExpectClean();
}

// A plan that misses is made again; tensors whose choice stays are not encoded again but copied.
TEST_F(CompactPushTest, PlanningAgainKeepsWhatDoesNotChange) {
  size_t again = 0, copied = 0;
  for (int ratio = 8; ratio < 44; ratio += 3) {
    const std::string name = "t" + std::to_string(ratio);
    std::vector<uint64_t> encoded;
    JobControl job([&](const JobProgress& progress) {
      if (progress.phase == "making compact" && progress.done_bytes == 0) encoded.push_back(progress.total_bytes);
    });
    const Result<PushReport> report = PushWith(folder_, OfRatio(name, ratio), job);
    ASSERT_OK(report.status());
    for (size_t round = 1; round < encoded.size(); ++round) {
      ++again;
      copied += encoded[round] < encoded[0];
    }
    double drift = 0, elems = 0;
    for (size_t i = 0; i < tuned_.size(); ++i) {
      if (tuned_[i].shape.size() < 2) continue;
      const double own = static_cast<double>(tuned_[i].bytes.size());
      const TensorUsage tensor = TensorOf(name, tuned_[i].name);
      ASSERT_GT(tensor.drift, 0) << tuned_[i].name;
      drift += own * tensor.drift;
      elems += own;
      // Of what is read, with the rounding, which adds about a unit in the last place.
      EXPECT_LT(ReadDrift(name, tuned_, i), tensor.drift * 1.3 + 0.2) << name << " " << tuned_[i].name;
    }
    EXPECT_NEAR(drift / elems, report->drift, 0.1 * report->drift) << "a tensor's is a code of 9 % steps, rounded up";
  }
  EXPECT_GT(again, 0u);
  EXPECT_GT(copied, again / 2);
  ExpectClean();
  for (const std::string& name : ModelNames()) {
    if (name == "base") continue;
    ASSERT_OK(Remove(catalog(), name, false, job_).status());
  }
  ASSERT_OK(Prune(catalog(), false, job_).status());
  ExpectNothingOf("t8");
}

// With a residual, rounded to nearest, and with low rank alone, rounded by a dither.
TEST_F(CompactPushTest, PushingAgainMendsDamage) {
  ExpectMended(1);
  ASSERT_OK(Remove(catalog(), "c", false, job_).status());
  ASSERT_OK(Prune(catalog(), false, job_).status());
  ExpectMended(0);
}

void CompactPushTest::ExpectMended(float step) {
  const PushReport report = MustPush(folder_, OfRank("c", kRank, step));
  const Bytes content = ReadStored("c", "model.safetensors");
  // Each first block of what this push made, one after the other.
  const PushId push = catalog().FindModel("c")->push;
  std::vector<std::string> keys;
  ASSERT_OK(catalog().store().ScanKeys(Family::kTensors, "", [&](std::string_view key) -> Status {
    const auto value = catalog().store().Get(Family::kTensors, std::string(key));
    const Result<TensorRecord> record = ParseTensorRecord(value->bytes());
    if (record->push == push && record->block_count > 0) keys.push_back(BlockKey(push, record->first_block));
    return OkStatus();
  }));
  ASSERT_GE(keys.size(), step > 0 ? 3u : 2u);
  size_t mended = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto good = catalog().store().Get(Family::kBlocks, keys[i]);
    ASSERT_OK(good.status());
    Bytes damaged(good->bytes().begin(), good->bytes().end());
    damaged.back() ^= std::byte{4};
    WriteBatch batch;
    batch.Put(Family::kBlocks, keys[i], damaged);
    ASSERT_OK(catalog().store().Write(batch, Durability::kSync));
    catalog().reader().DropCaches();
    const auto failed = [&] { return Verify(catalog(), {"c"}, job_)->failed.size(); };
    if (failed() == 0) continue;  // mended already, by what was pushed for another block
    ++mended;
    const std::string again = "again" + std::to_string(i);
    EXPECT_EQ(MustPush(folder_, OfRank(again, kRank, step)).drift, report.drift);
    EXPECT_EQ(failed(), 0u) << i;
    EXPECT_EQ(ReadStored("c", "model.safetensors"), content);
    EXPECT_EQ(ReadStored(again, "model.safetensors"), content);
    ASSERT_OK(Remove(catalog(), again, false, job_).status());
  }
  EXPECT_GE(mended, 2u);
  ASSERT_OK(Prune(catalog(), false, job_).status());
  ExpectClean();
}

TEST_F(CompactPushTest, TheSameTwiceAtOnce) {
  for (int round = 0; round < 4; ++round) {
    std::vector<std::thread> threads;
    std::vector<std::string> names;
    // The latter takes several rounds of planning, and is made with what the others left it to add.
    const auto how = [&](const std::string& name) {
      return round < 2 ? OfRank(name, kRank + static_cast<uint32_t>(round), 1) : OfRatio(name, 10 + round);
    };
    for (int i = 0; i < 3; ++i) names.push_back("c" + std::to_string(round) + "-" + std::to_string(i));
    for (const std::string& name : names) {
      threads.emplace_back([&, name] {
        JobControl job;
        EXPECT_OK(PushWith(folder_, how(name), job).status());
      });
    }
    // … and one that gives up while the others may be reading what it made.
    JobControl leaving([&](const JobProgress& progress) {
      if (progress.phase == (round % 2 == 0 ? "rebuilding" : "hashing")) leaving.Cancel();
    });
    const Status left = PushWith(folder_, how("leaving"), leaving).status();
    EXPECT_EQ(left.code(), StatusCode::kCancelled) << left.ToString();
    for (std::thread& thread : threads) thread.join();
    for (const std::string& name : names) {
      if (round < 2) {
        EXPECT_EQ(ReadStored(name, "model.safetensors"), ReadStored(names[0], "model.safetensors"));
      }
    }
    ExpectClean();
  }
}

TEST_F(CompactPushTest, ARatioOutOfReachIsRefused) {
  const Result<PushReport> report = PushPath(folder_, OfRatio("c", 1e5));
  EXPECT_EQ(report.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(std::string(report.status().message()), ::testing::HasSubstr("cannot be reached"));
  ExpectNothingOf("c");
}

TEST_F(CompactPushTest, KeepsItsDriftOrRefuses) {
  const PushReport kept = MustPush(folder_, OfDrift("c", 0.1));
  EXPECT_LE(kept.drift, 0.1);
  const Result<PushReport> refused = PushPath(folder_, OfDrift("d", 1e-9));
  EXPECT_EQ(refused.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(std::string(refused.status().message()), ::testing::HasSubstr("drift"));
  ExpectNothingOf("d");
  PushOptions or_exact = OfDrift("e", 1e-9);
  or_exact.compact->or_exact = true;
  const PushReport exact = MustPush(folder_, or_exact);
  EXPECT_EQ(exact.fidelity, Fidelity::kExact);
  ExpectStored("e", folder_);
}

TEST_F(CompactPushTest, WithoutABaseIsRefused) {
  const std::string folder = WriteModel("other", SmallModel(900));
  const Result<PushReport> report = PushPath(folder, OfRank("o", 2));
  EXPECT_EQ(report.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(std::string(report.status().message()), ::testing::HasSubstr("base"));
  ExpectNothingOf("o");
}

TEST_F(CompactPushTest, ACompactModelIsNobodysBase) {
  MustPush(folder_, OfRank("c", kRank));
  const std::string second = WriteModel("ft2", LowRankFinetune(tuned_, 90));
  EXPECT_EQ(MustPush(second).base, "base");
  EXPECT_EQ(MustPush(second, OfRank("c2", kRank)).base, "base");
  ExpectStored("ft2", second);
  ExpectClean();
}

TEST_F(CompactPushTest, WhatIsNotFiniteStaysExact) {
  std::vector<TestTensor> tuned = tuned_;
  const uint16_t nan = 0x7fc0, infinity = 0x7f80;
  std::memcpy(tuned[1].bytes.data() + 100, &nan, 2);
  std::memcpy(tuned[2].bytes.data() + 4000, &infinity, 2);
  const PushReport report = MustPush(WriteModel("nan", tuned), OfRank("c", kRank));
  EXPECT_EQ(report.fidelity, Fidelity::kCompact);
  EXPECT_EQ(TensorOf("c", "layers.0.up").encoding, "delta");
  EXPECT_EQ(TensorOf("c", "layers.0.down").encoding, "delta");
  EXPECT_EQ(TensorOf("c", "embed").encoding, "compact");
  EXPECT_EQ(ReadDrift("c", tuned_, 3) < 0.5, true);
  bool named = false;
  for (const std::string& warning : warnings_) named |= warning.find("'layers.0.up'") != std::string::npos;
  EXPECT_TRUE(named) << "a warning names them";
  ExpectClean();
}

TEST_F(CompactPushTest, MomentsOfThisModel) {
  const Result<PushReport> report = PushWithMoments("m", Moments(7));
  ASSERT_OK(report.status());
  EXPECT_EQ(report->drift_kind, DriftKind::kMoments);
  EXPECT_LT(report->drift, 1);
  ExpectClean();
}

// GPT-2 stores the weights of its layers as [inputs, outputs].
TEST_F(CompactPushTest, MomentsOfTransposedWeights) {
  const auto transposed = [](std::vector<TestTensor> tensors) {
    for (TestTensor& tensor : tensors) {
      if (tensor.shape.size() != 2 || tensor.name == "embed") continue;
      const uint64_t rows = tensor.shape[0], columns = tensor.shape[1], width = DTypeBytes(tensor.dtype);
      const Bytes from = tensor.bytes;
      for (uint64_t e = 0; e < rows * columns; ++e)
        std::memcpy(tensor.bytes.data() + (e % columns * rows + e / columns) * width, from.data() + e * width, width);
      tensor.shape = {columns, rows};
    }
    return tensors;
  };
  const std::vector<TestTensor> moments = Moments(7);
  std::vector<TestTensor> renamed = moments;
  for (TestTensor& h : renamed) {
    if (h.name.find("embed") == std::string::npos) h.name += ".transposed";
  }
  const auto push = [&](const std::string& name, const std::string& folder, const std::vector<TestTensor>& file,
                        uint32_t rank, float step) {
    const std::string path = WriteSource("moments-" + name, "m.safetensors", SafetensorsFile(file));
    Result<SourceTree> tree = SourceTree::Scan(path + "/m.safetensors");
    EXPECT_OK(tree.status());
    PushOptions options = OfRank(name, rank, step);
    options.compact->choice->scale = 0;
    options.compact->moments = &*tree;
    const Result<PushReport> report = PushPath(folder, options);
    EXPECT_OK(report.status());
    return report.ok() ? *report : PushReport{};
  };
  MustPush(WriteModel("base-t", transposed(base_)), {"base-t", PushOptions::Base::kNone, ""});
  const std::string other = WriteModel("ft-t", transposed(tuned_));
  for (const float step : {0.0f, 1.0f}) {
    const std::string end = std::to_string(static_cast<int>(step));
    const PushReport as_is = push("n" + end, folder_, moments, 2, step),
                     turned = push("t" + end, other, renamed, 2, step);
    EXPECT_EQ(turned.drift_kind, DriftKind::kMoments);
    // Turned, each row of inputs has factors, also where they do not pay.
    EXPECT_LE(turned.drift, as_is.drift * 1.05) << step;
    EXPECT_GE(turned.drift, as_is.drift * 0.9) << step;
  }
  // What is read is as near as what was measured: the same elements in another order.
  const std::vector<TestTensor> turned_back = transposed(transposed(tuned_));
  for (size_t i = 0; i < tuned_.size(); ++i) EXPECT_EQ(turned_back[i].bytes, tuned_[i].bytes);
  const std::vector<TestTensor> base = std::exchange(base_, transposed(base_));
  for (size_t i = 1; i < 4; ++i) {
    const double own = ReadDrift("t1", transposed(tuned_), i);
    base_ = base;
    EXPECT_NEAR(own / ReadDrift("n1", tuned_, i), 1, 0.1) << tuned_[i].name;
    base_ = transposed(base);
  }
  ExpectClean();
}

TEST_F(CompactPushTest, MomentsThatAreMissingForSomeTensors) {
  std::vector<TestTensor> moments = Moments(7);
  moments.erase(moments.begin() + 1);
  const Result<PushReport> report = PushWithMoments("m", moments);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->drift_kind, DriftKind::kPlain);
  ASSERT_FALSE(warnings_.empty());
  EXPECT_THAT(warnings_.back(), ::testing::HasSubstr("'layers.0.up'"));
}

TEST_F(CompactPushTest, MomentsOfAnotherModelAreRefused) {
  std::vector<TestTensor> other_shape = Moments(7);
  other_shape[2].shape = {256, 1024};
  Result<PushReport> report = PushWithMoments("a", other_shape);
  EXPECT_EQ(report.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(report.status().message()), ::testing::HasSubstr("'layers.0.down'"));

  std::vector<TestTensor> other_names = Moments(7);
  for (TestTensor& tensor : other_names) tensor.name = "x." + tensor.name;
  report = PushWithMoments("b", other_names);
  EXPECT_EQ(report.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(report.status().message()), ::testing::HasSubstr("another model"));

  std::vector<TestTensor> not_finite = Moments(7);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(not_finite[3].bytes.data() + 40, &nan, 4);
  report = PushWithMoments("c", not_finite);
  EXPECT_EQ(report.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(report.status().message()), ::testing::HasSubstr("layers.1.up"));

  const std::string folder = WriteSource("text", "m.safetensors", AsBytes("no safetensors file"));
  Result<SourceTree> tree = SourceTree::Scan(folder + "/m.safetensors");
  ASSERT_OK(tree.status());
  PushOptions options = OfRank("d", 2);
  options.compact->moments = &*tree;
  EXPECT_EQ(PushPath(folder_, options).status().code(), StatusCode::kInvalidArgument);
  for (const char* name : {"a", "b", "c", "d"}) ExpectNothingOf(name);
}

TEST_F(CompactPushTest, SingularMomentsAreSurvived) {
  std::vector<TestTensor> moments = Moments(7);
  std::vector<float> h(256 * 256);
  for (size_t i = 0; i < 256; ++i) h[i * 256 + i] = i < 3 ? 1 : 0;
  moments[1].bytes.assign(std::as_bytes(std::span(h)).begin(), std::as_bytes(std::span(h)).end());
  ASSERT_OK(PushWithMoments("m", moments).status());
  ExpectClean();
}

TEST_F(CompactPushTest, ASourceThatChangesIsNotStored) {
  bool changed = false;
  JobControl job([&](const JobProgress& progress) {
    if (progress.phase != "making compact" || changed) return;
    changed = true;
    WritePath(folder_ + "/model.safetensors", SafetensorsFile(LowRankFinetune(base_, 70)));
  });
  EXPECT_EQ(PushWith(folder_, OfRank("c", kRank), job).status().code(), StatusCode::kIo);
  EXPECT_TRUE(changed);
  ExpectNothingOf("c");
}

TEST_F(CompactPushTest, CancelledAtEveryPhase) {
  for (const char* phase : {"examining", "storing", "making compact", "rebuilding", "hashing", "verifying"}) {
    SCOPED_TRACE(phase);
    JobControl* self = nullptr;
    bool reached = false;
    JobControl job([&](const JobProgress& progress) {
      if (progress.phase != phase) return;
      reached = true;
      self->Cancel();
    });
    self = &job;
    EXPECT_EQ(PushWith(folder_, OfRank("c", kRank), job).status().code(), StatusCode::kCancelled);
    EXPECT_TRUE(reached);
    ExpectNothingOf("c");
  }
}

TEST_F(CompactPushTest, AStoredModelBecomesCompact) {
  MustPush(folder_);
  const Result<ModelRecord> before = catalog().FindModel("ft");
  ASSERT_OK(before.status());
  const Bytes exact = ReadStored("ft", "model.safetensors");
  const Result<FileRef> open = catalog().reader().OpenFileByHash(before->files[0].sha256);
  ASSERT_OK(open.status());

  PushOptions options = OfRank("ft", kRank);
  const Result<PushReport> report = CompactModel(catalog(), options, job_);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->base, "base");
  const Result<ModelRecord> after = catalog().FindModel("ft");
  ASSERT_OK(after.status());
  EXPECT_EQ(after->id, before->id);
  EXPECT_EQ(after->fidelity, Fidelity::kCompact);
  EXPECT_EQ(after->files[0].mtime_ns, before->files[0].mtime_ns);
  EXPECT_NE(ReadStored("ft", "model.safetensors"), exact);
  EXPECT_EQ(ReadStored("ft", "notes.txt").size(), 5u);

  const Result<PruneReport> pinned = Prune(catalog(), false, job_);
  ASSERT_OK(pinned.status());
  Bytes still(exact.size());
  const Result<size_t> read = catalog().reader().Read(*open, 0, still);
  ASSERT_OK(read.status());
  EXPECT_EQ(still, exact) << "who had it open reads the old bytes";
  EXPECT_EQ(CompactModel(catalog(), options, job_).status().code(), StatusCode::kUnsupported) << "compact already";
  ExpectClean();
}

TEST_F(CompactPushTest, AStoredModelWithoutItsDriftStaysExact) {
  MustPush(folder_);
  const Result<PushReport> refused = CompactModel(catalog(), OfDrift("ft", 1e-9), job_);
  EXPECT_EQ(refused.status().code(), StatusCode::kUnsupported);
  ExpectStored("ft", folder_);
  EXPECT_EQ(UsageOf("ft").fidelity, "exact");
  EXPECT_EQ(CompactModel(catalog(), OfRank("base", 2), job_).status().code(), StatusCode::kHasDependents);
  EXPECT_EQ(CompactModel(catalog(), OfRank("nobody", 2), job_).status().code(), StatusCode::kNotFound);
  ExpectClean();
}

// Stored by itself, it must not become its own base.
TEST_F(CompactPushTest, AModelThatWasStoredWithoutABaseFindsOne) {
  MustPush(folder_, {"alone", PushOptions::Base::kNone, ""});
  const Result<PushReport> report = CompactModel(catalog(), OfRank("alone", kRank), job_);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->base, "base");
  EXPECT_LT(report->drift, 0.5);
  ASSERT_OK(Prune(catalog(), false, job_).status());
  EXPECT_FALSE(ReadStored("alone", "model.safetensors").empty());
  ExpectClean();
}

TEST_F(CompactPushTest, ExportSaysWhatTheFilesAre) {
  MustPush(folder_, OfRank("c", kRank));
  const std::string dir = temp() + "/out";
  ASSERT_OK(Export(catalog(), "c", nullptr, *NewFolderSink(dir), job_).status());
  const Bytes note = ReadPath(dir + "/" + std::string(kFidelityFile));
  for (const char* words : {"not the original", "base:   base", "rank 3", "drift:"})
    EXPECT_THAT(std::string(AsChars(note)), ::testing::HasSubstr(words));
  EXPECT_EQ(ReadPath(dir + "/model.safetensors"), ReadStored("c", "model.safetensors"));
  const std::string exact = temp() + "/exact";
  ASSERT_OK(Export(catalog(), "base", nullptr, *NewFolderSink(exact), job_).status());
  EXPECT_FALSE(std::filesystem::exists(exact + "/" + std::string(kFidelityFile)));
}

TEST_F(CompactPushTest, ABudgetOfMemoryThatIsTooSmallIsNamed) {
  const TestTensor large = RandomTensor("large", {2048, 1024}, 3);
  MustPush(WriteModel("large", {large}));
  const std::string folder = WriteModel("large-ft", {Finetuned(large, 4)});
  Close();
  CatalogOptions small;
  small.memory_budget_bytes = 64 << 20;
  Result<std::unique_ptr<Catalog>> opened = Catalog::Open(store_dir(), small);
  ASSERT_OK(opened.status());
  Result<SourceTree> source = SourceTree::Scan(folder);
  ASSERT_OK(source.status());
  const Status status = Push(**opened, *source, OfRank("c", 8, 1), job_).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("--memory-budget"));
}

// Each round of planning writes tokens that the next one supersedes.
TEST_F(CompactPushTest, WhatPlanningWroteInVainIsGivenBack) {
  const auto blob_bytes = [&] {
    uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(store_dir())) {
      if (entry.path().extension() == ".blob") bytes += entry.file_size();
    }
    return bytes;
  };
  const uint64_t before = blob_bytes();
  const PushReport report = MustPush(folder_, OfRatio("small", 10));
  EXPECT_LE(blob_bytes() - before, report.stored_bytes + (64 << 10));
  const uint64_t after = blob_bytes();
  const Result<PruneReport> pruned = Prune(catalog(), false, job_);
  ASSERT_OK(pruned.status());
  EXPECT_EQ(pruned->freed_bytes, 0u);
  EXPECT_LE(after - blob_bytes(), after / 50);
  ExpectClean();
}

}  // namespace
}  // namespace modelstore
