// Reading compact tensors: assembled from what their records name, within the budget, and refused when they contradict.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <random>
#include <thread>

#include "catalog/read/read_engine.h"
#include "catalog/read/tensor_table.h"
#include "codec/decode/compact_decoder.h"
#include "codec/kernels/level_tokens.h"
#include "tests/unit/catalog/read_fixture.h"

namespace modelstore {
namespace {

using testing::HasSubstr;

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB;

Bytes BytesOf(const std::vector<uint16_t>& values) {
  const ByteSpan bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

void AppendTokens(size_t levels, int max, unsigned group, std::mt19937_64& random, std::vector<uint16_t>* tokens) {
  std::normal_distribution<double> normal(0, max / 4.0);
  std::vector<int8_t> values((levels + group - 1) / group * group);
  for (size_t i = 0; i < levels; ++i) values[i] = static_cast<int8_t>(std::clamp<double>(normal(random), -max, max));
  const size_t count = values.size() / group;
  tokens->resize(tokens->size() + count);
  if (count > 0) LevelsToTokens(values.data(), count, group, tokens->data() + tokens->size() - count);
}

struct Shape {
  uint64_t rows, columns;
  uint32_t rank;
  bool residual;
};

// A compact tensor of `shapes` and the tensors it consists of.
struct Compact {
  TensorId id, factors, residual, scales;
};

class CompactReadTest : public testing::Test {
 protected:
  void MakeEngine(uint64_t budget_bytes = 64 * kMiB, unsigned threads = 1) {
    engine_.reset();
    pool_ = std::make_unique<WorkerPool>(threads);
    engine_ = std::make_unique<ReadEngine>(builder_.store, *pool_,
                                           ReadOptions{.memory_budget_bytes = budget_bytes, .prefetch_bytes = 0});
  }
  ReadEngine& engine() {
    if (!engine_) MakeEngine();
    return *engine_;
  }

  // `view`: over all elements, in `dtype`'s family. What the tensor must hold is made with the codec alone.
  Compact Add(const std::vector<Shape>& shapes, std::vector<ViewSegment> view, DType dtype = DType::kBF16,
              uint32_t block_elems = kBlockBytes / 2) {
    std::mt19937_64 random(shapes.size());
    auto compact = std::make_shared<CompactFrame>();
    compact->seed = 77;
    std::vector<uint16_t> factors, residual, scales;
    uint64_t elems = 0;
    for (const Shape& shape : shapes) {
      CompactSegment segment;
      segment.rows = shape.rows;
      segment.columns = shape.columns;
      segment.rank = shape.rank;
      segment.has_residual = shape.residual;
      elems += segment.elems();
      AppendTokens(shape.rank * shape.columns, 127, kFactorTokenLevels, random, &factors);
      AppendTokens(shape.rows * shape.rank, 127, kFactorTokenLevels, random, &factors);
      if (shape.residual) AppendTokens(segment.elems(), 7, kResidualTokenLevels, random, &residual);
      for (uint32_t i = 0; i < shape.rank + segment.groups(); ++i)
        scales.push_back(static_cast<uint16_t>(0x3500 + random() % 64));
      compact->segments.push_back(std::move(segment));
    }
    EXPECT_TRUE(compact->FinishLayout(elems).ok());
    Frame frame;
    frame.encoding = Encoding::kCompact;
    frame.dtype = frame.coded_dtype = dtype;
    frame.elems = elems;
    frame.block_elems = block_elems;
    frame.compact = compact;

    const Bytes base = builder_.Predict(view, dtype);
    const size_t width = DTypeBytes(dtype);
    Bytes content(elems * width);
    CompactScratch scratch;
    for (uint32_t i = 0; i < frame.BlockCount(); ++i) {
      for (const CompactPiece& piece : CompactPieces(frame, i)) {
        const auto slice = [](const std::vector<uint16_t>& values, const CompactPiece::Range& range) {
          return std::as_bytes(std::span(values).subspan(range.begin, range.count));
        };
        const uint64_t at = (piece.segment->first_elem + piece.begin) * width;
        const Status status =
            RebuildPiece(frame, piece,
                         {slice(factors, piece.right), slice(factors, piece.left), slice(residual, piece.residual),
                          slice(scales, piece.scales), slice(scales, piece.steps)},
                         ByteSpan(base).subspan(at, piece.elems * width), scratch,
                         MutableByteSpan(content).subspan(at, piece.elems * width));
        EXPECT_TRUE(status.ok()) << status.ToString();
      }
    }
    EXPECT_FALSE(content == base);

    // Small blocks, so that ranges cross them.
    Compact added;
    added.factors = builder_.AddRaw(DType::kU16, BytesOf(factors), 1000);
    added.residual = builder_.AddRaw(DType::kU16, BytesOf(residual), 4099);
    added.scales = builder_.AddRaw(DType::kBF16, BytesOf(scales), 7);
    uint8_t depth = 1;
    for (const ViewSegment& segment : view) {
      if (segment.kind == ViewSegment::Kind::kIdentity)
        depth = std::max<uint8_t>(depth, builder_.known(segment.base).record.depth + 1);
    }
    added.id = builder_.AddCoded(frame, std::move(content), {}, std::move(view), depth, [&](TensorRecord* record) {
      const auto whole = [](const TensorId& id, size_t count) {
        return count == 0 ? std::vector<ViewSegment>() : std::vector<ViewSegment>{{.elems = count, .base = id}};
      };
      record->MutableViewOf(InputRole::kFactors) = whole(added.factors, factors.size());
      record->MutableViewOf(InputRole::kResidual) = whole(added.residual, residual.size());
      record->MutableViewOf(InputRole::kScales) = whole(added.scales, scales.size());
    });
    return added;
  }

  TensorId AddBase(uint64_t elems, uint64_t seed = 1) {
    return builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(elems, seed));
  }

  void ExpectReads(const TensorId& id) {
    const auto tensor = engine().OpenTensorById(id);
    ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
    Bytes out((*tensor)->record.bytes);
    const Status status = engine().ReadTensor(*tensor, 0, out);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(out == builder_.content(id));
  }

  void Rewrite(const TensorId& id, const std::function<void(TensorRecord&)>& change) {
    TensorRecord record = builder_.known(id).record;
    change(record);
    builder_.Put(Family::kTensors, TensorKey(id), Serialize(record));
    engine().DropCaches();
  }

  StoreBuilder builder_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<ReadEngine> engine_;
};

TEST_F(CompactReadTest, SegmentsAcrossBlocksDecode) {
  const std::vector<Shape> shapes = {{300, 701, 5, true}, {1, 64, 0, true}, {90, 1000, 16, false}, {7, 33, 0, false}};
  uint64_t elems = 0;
  for (const Shape& shape : shapes) elems += shape.rows * shape.columns;
  const TensorId base = AddBase(elems + 10);
  ExpectReads(Add(shapes, {{.elems = elems, .base = base, .base_offset_elems = 10}}).id);
}

TEST_F(CompactReadTest, ViewsOfSeveralBasesAndOfOtherTypesDecode) {
  const TensorId exact = AddBase(60'000);
  const TensorId finetune = builder_.AddDelta(exact, 4);
  const Bytes floats = builder_.Predict({{.elems = 60'000, .base = exact}}, DType::kF32);
  const TensorId wide = builder_.AddRaw(DType::kF32, floats, 10'007);
  const std::vector<ViewSegment> view = {{.elems = 50'000, .base = exact, .base_offset_elems = 10'000},
                                         {.elems = 60'000, .base = finetune},
                                         {.kind = ViewSegment::Kind::kNone, .elems = 3'000, .base = {}},
                                         {.elems = 47'000, .base = wide, .base_offset_elems = 1}};
  ExpectReads(Add({{160, 500, 3, true}, {100, 800, 2, false}}, view).id);
  ExpectReads(Add({{160, 500, 3, true}, {100, 800, 2, false}}, view, DType::kF16).id);
  ExpectReads(Add({{160, 500, 3, true}, {100, 800, 2, false}}, view, DType::kF32, 999).id);
}

TEST_F(CompactReadTest, PartsMayBeSplitOverTensors) {
  const TensorId base = AddBase(200'000);
  const Compact compact = Add({{200, 500, 4, true}, {100, 1000, 8, true}}, {{.elems = 200'000, .base = base}});
  // The same tokens in two tensors.
  const Bytes& tokens = builder_.content(compact.residual);
  const size_t cut = 20'002;
  const TensorId first = builder_.AddRaw(DType::kU16, Bytes(tokens.begin(), tokens.begin() + cut), 300);
  const TensorId second = builder_.AddRaw(DType::kU16, Bytes(tokens.begin() + cut, tokens.end()), 5000);
  Rewrite(compact.id, [&](TensorRecord& r) {
    r.MutableViewOf(InputRole::kResidual) = {{.elems = cut / 2, .base = first},
                                             {.elems = (tokens.size() - cut) / 2, .base = second}};
  });
  ExpectReads(compact.id);
}

TEST_F(CompactReadTest, FilesOfItsPartsReadAtAnyOffset) {
  const TensorId base = AddBase(300'000);
  const Compact compact = Add({{300, 500, 4, true}, {300, 500, 2, false}}, {{.elems = 300'000, .base = base}});
  const std::vector<Extent> extents = {StoreBuilder::Literal(Bytes(8, std::byte{1})),
                                       StoreBuilder::Part(compact.id, 300'000, 300'000),
                                       StoreBuilder::Part(compact.id, 0, 300'000)};
  const Bytes content = builder_.Content(extents);
  const auto file = engine().OpenFileByHash(builder_.AddFile(extents));
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  for (const auto& [offset, bytes] :
       {std::pair<size_t, size_t>{0, 600'008}, {5, 10}, {299'999, 50}, {262'000, 300'000}}) {
    Bytes out(bytes);
    const auto read = engine().Read(*file, offset, out);
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_TRUE(std::equal(out.begin(), out.end(), content.begin() + offset)) << offset;
  }
  EXPECT_THAT(engine().PinnedTensors(),
              testing::UnorderedElementsAre(compact.id, compact.factors, compact.residual, compact.scales, base));
}

TEST_F(CompactReadTest, BlocksOfTokensAreDecodedOnceForAllBlocksThatShareThem) {
  const uint64_t elems = 8 * kBlockBytes / 2;
  const TensorId base = AddBase(elems);
  const Compact compact = Add({{elems / 1024, 1024, 2, true}}, {{.elems = elems, .base = base}});
  MakeEngine();
  ExpectReads(compact.id);
  // Each of the other tensors' blocks once, besides the tensor's own.
  uint64_t blocks = 8;
  for (const TensorId& id : {base, compact.factors, compact.residual, compact.scales})
    blocks += builder_.known(id).record.block_count;
  EXPECT_EQ(engine().stats().decoded_blocks, blocks);
}

TEST_F(CompactReadTest, ManyReadersStayWithinASmallBudget) {
  const uint64_t elems = 20 * kBlockBytes / 2;
  const TensorId exact = AddBase(elems);
  const TensorId base = builder_.AddDelta(exact, 3);
  const Compact compact = Add({{elems / 1024, 1024, 16, true}}, {{.elems = elems, .base = base}});
  MakeEngine(kMinReadBudgetBytes, 4);
  const auto tensor = engine().OpenTensorById(compact.id);
  ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
  std::atomic<int> failures{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 8; ++t) {
    readers.emplace_back([&, t] {
      Bytes out(300'000);
      std::mt19937_64 random(t);
      for (int i = 0; i < 20; ++i) {
        const uint64_t offset = random() % (elems * 2 - out.size());
        const Bytes& content = builder_.content(compact.id);
        if (!engine().ReadTensor(*tensor, offset, out).ok() ||
            !std::equal(out.begin(), out.end(), content.begin() + static_cast<ptrdiff_t>(offset)))
          ++failures;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(failures, 0);
  EXPECT_LE(engine().stats().peak_bytes, kMinReadBudgetBytes);
}

TEST_F(CompactReadTest, APieceThatExceedsTheBudgetIsRefusedBeforeItIsAllocated) {
  const uint64_t columns = 16'384;
  const TensorId base = AddBase(2 * columns);
  const Compact compact = Add({{2, columns, 1000, false}}, {{.elems = 2 * columns, .base = base}});
  MakeEngine(kMinReadBudgetBytes);
  const auto tensor = engine().OpenTensorById(compact.id);
  ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
  ASSERT_GT((*tensor)->peak_bytes, kMinReadBudgetBytes);
  EXPECT_EQ(engine().ReadBlock(*tensor, 0).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(engine().ReadBlock(*tensor, 0, false).status().code(), StatusCode::kResourceExhausted);
  MakeEngine(512 * kMiB);
  ExpectReads(compact.id);
}

TEST_F(CompactReadTest, CheckingReadsDecodeWhatIsStoredNow) {
  const TensorId base = AddBase(100'000);
  const Compact compact = Add({{100, 1000, 4, true}}, {{.elems = 100'000, .base = base}});
  ExpectReads(compact.id);
  const auto tensor = engine().OpenTensorById(compact.id);
  ASSERT_TRUE(tensor.ok());
  const uint64_t before = engine().stats().decoded_blocks;
  const auto block = engine().ReadBlock(*tensor, 0, /*keep=*/false);
  ASSERT_TRUE(block.ok()) << block.status().ToString();
  EXPECT_GT(engine().stats().decoded_blocks, before);
  EXPECT_TRUE(std::ranges::equal(block->bytes(), builder_.content(compact.id)));
}

TEST_F(CompactReadTest, DamagedPartsFailTheRead) {
  const TensorId base = AddBase(100'000);
  const Compact compact = Add({{100, 1000, 4, true}}, {{.elems = 100'000, .base = base}});
  for (const TensorId& part : {compact.factors, compact.residual, compact.scales, base}) {
    const std::string key = builder_.KeyOfBlock(part, 0);
    const Bytes good = [&] {
      const auto value = builder_.store.Get(Family::kBlocks, key);
      const ByteSpan bytes = value->bytes();
      return Bytes(bytes.begin(), bytes.end());
    }();
    Bytes damaged = good;
    damaged.back() ^= std::byte{1};
    builder_.Put(Family::kBlocks, key, damaged);
    engine().DropCaches();
    const auto tensor = engine().OpenTensorById(compact.id);
    ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
    const Status status = engine().ReadBlock(*tensor, 0).status();
    EXPECT_EQ(status.code(), StatusCode::kCorruption);
    EXPECT_THAT(std::string(status.message()), HasSubstr(TensorName(part)));
    builder_.Put(Family::kBlocks, key, good);
  }
  engine().DropCaches();
  ExpectReads(compact.id);
}

TEST_F(CompactReadTest, RecordsThatContradictTheirFrameAreRefused) {
  const TensorId base = AddBase(100'000);
  const TensorId ints = builder_.AddRaw(DType::kI16, RandomBytes(200'000, 2), 1000);
  const Compact compact = Add({{100, 1000, 4, true}}, {{.elems = 100'000, .base = base}});
  const Compact other = Add({{100, 1000, 1, false}}, {{.elems = 100'000, .base = base}});
  const auto expect_refused = [&](const char* why, const std::function<void(TensorRecord&)>& change) {
    Rewrite(compact.id, change);
    const Status status = engine().OpenTensorById(compact.id).status();
    EXPECT_EQ(status.code(), StatusCode::kCorruption) << why << ": " << status.ToString();
    Rewrite(compact.id, [](TensorRecord&) {});
    EXPECT_TRUE(engine().OpenTensorById(compact.id).ok());
  };
  expect_refused("no view", [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase).clear(); });
  expect_refused("view past its base",
                 [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base_offset_elems = 1; });
  expect_refused("integers predict no floats",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = ints; });
  expect_refused("a compact base",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = other.id, r.depth = 3; });
  expect_refused("its own base", [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = compact.id; });
  expect_refused("no factors", [](TensorRecord& r) { r.MutableViewOf(InputRole::kFactors).clear(); });
  expect_refused("factors too short", [](TensorRecord& r) { r.MutableViewOf(InputRole::kFactors)[0].elems -= 1; });
  expect_refused("factors too long", [](TensorRecord& r) {
    r.MutableViewOf(InputRole::kFactors).push_back(r.MutableViewOf(InputRole::kFactors)[0]);
  });
  expect_refused("factors that are no tokens",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kFactors)[0].base = ints; });
  expect_refused("residual missing",
                 [](TensorRecord& r) { r.MutableViewOf(InputRole::kResidual)[0].base.ordinal = 9; });
  expect_refused("residual too short", [](TensorRecord& r) { r.MutableViewOf(InputRole::kResidual)[0].elems -= 1; });
  expect_refused("scales of tokens", [&](TensorRecord& r) {
    r.MutableViewOf(InputRole::kScales)[0].base = r.MutableViewOf(InputRole::kFactors)[0].base;
  });
  expect_refused("depth 0", [](TensorRecord& r) { r.depth = 0; });
  expect_refused("too deep", [](TensorRecord& r) { r.depth = 200; });

  // And nothing is a delta against it.
  const TensorId delta = builder_.AddDelta(base, 5);
  Rewrite(delta, [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = compact.id, r.depth = 3; });
  EXPECT_EQ(engine().OpenTensorById(delta).status().code(), StatusCode::kCorruption);
}

TEST_F(CompactReadTest, IsReadBeforeItIsPublished) {
  const TensorId base = AddBase(100'000);
  const Compact compact = Add({{100, 1000, 4, true}}, {{.elems = 100'000, .base = base}});
  const TensorRecord record = builder_.known(compact.id).record;
  builder_.Delete(Family::kTensors, TensorKey(compact.id));
  const auto tensor = engine().OpenUnpublished(compact.id, record);
  ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
  Bytes out(200'000);
  ASSERT_TRUE(engine().ReadTensor(*tensor, 0, out).ok());
  EXPECT_TRUE(out == builder_.content(compact.id));
  EXPECT_EQ(engine().OpenTensorById(compact.id).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace modelstore
