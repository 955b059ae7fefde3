#include "catalog/read/read_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <set>
#include <thread>

#include "tests/unit/catalog/read_fixture.h"

namespace modelstore {
namespace {

using testing::HasSubstr;

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB;

std::string Hex(const TensorId& id) { return ToHex(AsBytes(TensorKey(id))); }

class ReadEngineTest : public testing::Test {
 protected:
  // One worker: what is submitted runs in order, so that WaitForWorkers sees all prefetches done.
  void MakeEngine(ReadOptions options = {.memory_budget_bytes = 64 * kMiB, .prefetch_bytes = 0}, unsigned threads = 1) {
    engine_.reset();
    pool_ = std::make_unique<WorkerPool>(threads);
    engine_ = std::make_unique<ReadEngine>(builder_.store, *pool_, options);
  }
  ReadEngine& engine() {
    if (!engine_) MakeEngine();
    return *engine_;
  }
  void WaitForWorkers() {
    std::latch done(1);
    ASSERT_TRUE(pool_->Submit([&] { done.count_down(); }));
    done.wait();
  }
  FileRef Open(const Sha256Digest& sha256) {
    auto file = engine().OpenFileByHash(sha256);
    EXPECT_TRUE(file.ok()) << file.status().ToString();
    return file.ok() ? *file : nullptr;
  }
  Result<Bytes> ReadAll(const TensorId& id) {
    ASSIGN_OR_RETURN(const TensorRef tensor, engine().OpenTensorById(id));
    Bytes out(tensor->record.bytes);
    RETURN_IF_ERROR(engine().ReadTensor(tensor, 0, out));
    return out;
  }
  void ExpectReads(const TensorId& id) {
    const auto bytes = ReadAll(id);
    ASSERT_TRUE(bytes.ok()) << bytes.status().ToString();
    EXPECT_TRUE(*bytes == builder_.content(id));
  }
  // The record of `id` changed by `change` and stored again.
  void Rewrite(const TensorId& id, const std::function<void(TensorRecord&)>& change) {
    TensorRecord record = builder_.known(id).record;
    change(record);
    builder_.Put(Family::kTensors, TensorKey(id), Serialize(record));
  }

  StoreBuilder builder_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<ReadEngine> engine_;
};

TEST_F(ReadEngineTest, EveryEncodingDecodes) {
  const Bytes text(500'000, std::byte{'x'});
  ExpectReads(builder_.AddRaw(DType::kF32, RandomBytes(4 * 10'000, 1), 999));
  ExpectReads(builder_.AddEncoded(Encoding::kZstd, DType::kU8, text));
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(300'001, 2));
  ExpectReads(base);
  const TensorId delta = builder_.AddDelta(base, 3);
  ExpectReads(delta);
  const TensorId second = builder_.AddDelta(delta, 4);
  ExpectReads(second);
  ExpectReads(builder_.AddDelta(second, 5));
}

TEST_F(ReadEngineTest, EveryKindOfViewDecodes) {
  const TensorId bf16 = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(400'000, 1));
  const TensorId raw = builder_.AddRaw(DType::kBF16, StoreBuilder::Weights(50'000, 2), 777);
  const auto identity = [](const TensorId& base, uint64_t offset, uint64_t elems) {
    return ViewSegment{.elems = elems, .base = base, .base_offset_elems = offset};
  };
  const auto none = [](uint64_t elems) {
    return ViewSegment{.kind = ViewSegment::Kind::kNone, .elems = elems, .base = {}};
  };
  const std::vector<std::vector<ViewSegment>> views = {
      {identity(bf16, 0, 131'072)},                                       // exactly one block
      {identity(bf16, 7, 390'000)},                                       // straddles blocks
      {identity(bf16, 131'072, 200'000), none(70'000)},                   // more rows than the base
      {identity(raw, 100, 40'000), none(3), identity(bf16, 5, 100'000)},  // two bases
      {identity(bf16, 390'000, 10'000), identity(bf16, 0, 200'000)},      // swapped
      {none(1), identity(raw, 0, 50'000), identity(raw, 0, 50'000)}};     // twice the same
  uint64_t seed = 10;
  for (const std::vector<ViewSegment>& view : views) {
    const Bytes content = StoreBuilder::Perturb(builder_.Predict(view, DType::kBF16), 2, ++seed);
    const TensorId id = builder_.AddEncoded(Encoding::kDelta, DType::kBF16, content, view);
    ExpectReads(id);
    // ReadPrediction gives the same elements as the reference, from anywhere.
    const Bytes expected = builder_.Predict(view, DType::kBF16);
    Bytes part(2 * 33'333);
    ASSERT_TRUE(engine().ReadPrediction(view, DType::kBF16, 20'001, part).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + 2 * 20'001));
  }
}

TEST_F(ReadEngineTest, ViewsConvertTheBase) {
  const TensorId bf16 = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(300'000, 1));
  const std::vector<ViewSegment> view = {{.elems = 299'000, .base = bf16, .base_offset_elems = 1000}};
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    const Bytes content = StoreBuilder::Perturb(builder_.Predict(view, dtype), DTypeBytes(dtype), 5);
    const TensorId id = builder_.AddEncoded(Encoding::kDelta, dtype, content, view);
    ExpectReads(id);
    ExpectReads(builder_.AddDelta(id, 6));
  }
  // F32 whose low halves are zero, coded as BF16.
  const Bytes narrow = StoreBuilder::Perturb(builder_.Predict(view, DType::kBF16), 2, 7);
  Bytes wide(narrow.size() * 2);
  for (size_t i = 0; i < narrow.size(); i += 2) std::copy_n(narrow.begin() + i, 2, wide.begin() + 2 * i + 2);
  ExpectReads(builder_.AddEncoded(Encoding::kDelta, DType::kF32, wide, view, DType::kBF16));
}

TEST_F(ReadEngineTest, FilesReadTheSameAtAnyOffsetAndSize) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(400'000, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const TensorId small = builder_.AddRaw(DType::kU8, RandomBytes(10'007, 3), 100);
  const TensorId empty = builder_.AddRaw(DType::kF32, {}, 64);
  const std::vector<Extent> extents = {StoreBuilder::Literal(RandomBytes(8, 4)),
                                       builder_.Whole(empty),
                                       builder_.Whole(small),
                                       StoreBuilder::Literal({}),
                                       StoreBuilder::Literal(RandomBytes(64, 5)),
                                       builder_.Whole(delta),
                                       StoreBuilder::Part(base, 262'143, 3),
                                       StoreBuilder::Part(small, 99, 0),
                                       StoreBuilder::Part(small, 99, 102),
                                       builder_.Whole(base),
                                       builder_.Whole(empty)};
  const Bytes content = builder_.Content(extents);
  const Sha256Digest sha256 = builder_.AddFile(extents);
  for (const unsigned threads : {1, 3}) {
    MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = kMiB}, threads);
    const FileRef file = Open(sha256);
    ASSERT_EQ(file->bytes(), content.size());
    std::mt19937_64 random(6);
    for (int i = 0; i < 600; ++i) {
      const uint64_t offset = random() % (content.size() + 10);
      const size_t size = random() % (1ull << (random() % 21));
      Bytes out(size);
      const auto n = engine().Read(file, offset, out);
      ASSERT_TRUE(n.ok()) << n.status().ToString();
      const size_t expected = offset >= content.size() ? 0 : std::min<size_t>(size, content.size() - offset);
      ASSERT_EQ(*n, expected);
      ASSERT_TRUE(std::equal(out.begin(), out.begin() + expected, content.begin() + std::min(offset, content.size())))
          << offset << "+" << size;
    }
    Bytes whole(content.size());
    ASSERT_EQ(*engine().Read(file, 0, whole), content.size());
    EXPECT_TRUE(whole == content);
  }
}

TEST_F(ReadEngineTest, AnEmptyFileReadsNothing) {
  const FileRef file = Open(builder_.AddFile({}));
  Bytes out(10);
  EXPECT_EQ(*engine().Read(file, 0, out), 0u);
  engine().Prefetch(file, 0, 100);
}

TEST_F(ReadEngineTest, BlocksAreCachedUnlessToldOtherwise) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 100);
  const TensorRef tensor = *engine().OpenTensorById(id);
  int gets = 0;
  builder_.store.SetHook([&](std::string_view) { return ++gets, OkStatus(); });
  for (int i = 0; i < 3; ++i) {
    const auto block = engine().ReadBlock(tensor, 4);
    ASSERT_TRUE(block.ok());
    EXPECT_TRUE(std::ranges::equal(block->bytes(), ByteSpan(builder_.content(id)).subspan(400, 100)));
  }
  EXPECT_EQ(gets, 1);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(engine().ReadBlock(tensor, 4, /*keep=*/false).ok());
  EXPECT_EQ(gets, 3) << "checking what is stored means reading it";
  ASSERT_TRUE(engine().ReadBlock(tensor, 5, /*keep=*/false).ok());
  ASSERT_TRUE(engine().ReadBlock(tensor, 5).ok());
  EXPECT_EQ(gets, 5);
  engine().DropCaches();
  ASSERT_TRUE(engine().ReadBlock(tensor, 5).ok());
  EXPECT_EQ(gets, 6);
  EXPECT_EQ(engine().ReadBlock(tensor, 10).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(ReadEngineTest, ATensorNeedNotBePublished) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(200'000, 1));
  const TensorId id = builder_.AddDelta(base, 2);
  builder_.Delete(Family::kTensors, TensorKey(id));
  EXPECT_EQ(engine().OpenTensorById(id).status().code(), StatusCode::kNotFound);
  const TensorRecord& record = builder_.known(id).record;
  const auto tensor = std::make_shared<const OpenTensor>(OpenTensor{id, record, *ParseFrame(record.frame)});
  Bytes out;
  for (uint32_t i = 0; i < tensor->frame.BlockCount(); ++i) {
    const auto block = engine().ReadBlock(tensor, i, /*keep=*/false);
    ASSERT_TRUE(block.ok()) << block.status().ToString();
    out.insert(out.end(), block->bytes().begin(), block->bytes().end());
  }
  EXPECT_TRUE(out == builder_.content(id));
}

TEST_F(ReadEngineTest, AFineTuneReadsOnlyTheBlocksOfItsBaseThatItNeeds) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(5 * 131'072, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(delta)}));
  Bytes out(4096);
  ASSERT_TRUE(engine().Read(file, 3 * kBlockBytes + 100, out).ok());
  EXPECT_EQ(engine().stats().decoded_blocks, 2u);
}

Bytes Joined(const std::vector<BlockRef>& pieces) {
  Bytes joined;
  for (const BlockRef& piece : pieces) joined.insert(joined.end(), piece.bytes().begin(), piece.bytes().end());
  return joined;
}

TEST_F(ReadEngineTest, PiecesPointIntoBlocksThatAreForgottenWhenTheReaderHasPassed) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(2 * kMiB / 2, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const TensorId small = builder_.AddRaw(DType::kU8, RandomBytes(1000, 3), 100);
  const std::vector<Extent> extents = {StoreBuilder::Literal(RandomBytes(60, 4)), builder_.Whole(small),
                                       builder_.Whole(small), builder_.Whole(delta)};
  const Bytes content = builder_.Content(extents);
  MakeEngine({.memory_budget_bytes = 64 * kMiB, .prefetch_bytes = 0});
  const FileRef file = Open(builder_.AddFile(extents));
  Bytes scratch(kMiB + 1);
  size_t copied = 0;
  for (uint64_t at = 0; at < content.size();) {
    std::vector<BlockRef> pieces;
    const auto n = engine().ReadPieces(file, at, scratch, /*passing=*/true, &pieces);
    ASSERT_TRUE(n.ok()) << n.status().ToString();
    ASSERT_TRUE(std::ranges::equal(Joined(pieces), ByteSpan(content).subspan(at, *n))) << at;
    EXPECT_LE(pieces.size(), 6u) << "small pieces are joined";
    for (const BlockRef& piece : pieces)
      if (piece.bytes().data() >= scratch.data() && piece.bytes().data() < scratch.data() + scratch.size())
        copied += piece.bytes().size();
    at += *n;
  }
  EXPECT_LT(copied, 40'000u) << "only small pieces are copied";
  EXPECT_LE(engine().stats().cache_bytes, content.size() + kBlockBytes) << "of the base";
  const uint64_t decoded = engine().stats().decoded_blocks;
  // Who does not keep what it gets finds it in the cache the next time.
  for (int round = 0; round < 2; ++round) {
    std::vector<BlockRef> pieces;
    ASSERT_TRUE(engine().ReadPieces(file, 2060, MutableByteSpan(scratch).first(kMiB), false, &pieces).ok());
  }
  EXPECT_EQ(engine().stats().decoded_blocks, decoded + 4);
}

TEST_F(ReadEngineTest, SixteenReadersInTheSmallestBudget) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(6 * kMiB / 2, 1));
  std::vector<TensorId> chain = {base};
  for (int depth = 1; depth <= 3; ++depth) chain.push_back(builder_.AddDelta(chain.back(), depth));
  // Straddles the base's blocks, so that predictions are assembled.
  const uint64_t elems = 2 * kMiB / 2;
  const std::vector<ViewSegment> view = {{.elems = elems, .base = chain[1], .base_offset_elems = 50'000}};
  chain.push_back(builder_.AddEncoded(Encoding::kDelta, DType::kBF16,
                                      StoreBuilder::Perturb(builder_.Predict(view, DType::kBF16), 2, 9), view));
  std::vector<Sha256Digest> files;
  for (const TensorId& id : chain) files.push_back(builder_.AddFile({builder_.Whole(id)}));
  MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = 2 * kMiB}, 4);

  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 16; ++t) {
    readers.emplace_back([&, t] {
      std::mt19937_64 random(t);
      const size_t which = t % files.size();
      const Bytes& content = builder_.content(chain[which]);
      auto file = engine().OpenFileByHash(files[which]);
      auto tensor = engine().OpenTensorById(chain[which]);
      if (!file.ok() || !tensor.ok()) return void(++wrong);
      const auto check = [&](uint64_t offset, size_t size) {
        Bytes out(size);
        if (random() % 2 == 0) {
          const auto n = engine().Read(*file, offset, out);
          if (!n.ok() || !std::equal(out.begin(), out.begin() + *n, content.begin() + offset)) ++wrong;
          return;
        }
        std::vector<BlockRef> pieces;
        const auto n = engine().ReadPieces(*file, offset, out, random() % 2 == 0, &pieces);
        if (!n.ok() || !std::ranges::equal(Joined(pieces), ByteSpan(content).subspan(offset, *n))) ++wrong;
      };
      for (uint64_t at = 0; t % 2 == 0 && at < content.size(); at += kMiB) check(at, kMiB);
      for (int i = 0; i < 40; ++i) check(random() % content.size(), 1 + random() % 700'000);
      BlockRef held;
      for (int i = 0; i < 20; ++i) {
        const uint32_t index = random() % (*tensor)->frame.BlockCount();
        held = {};
        auto block = engine().ReadBlock(*tensor, index, random() % 2 == 0);
        if (!block.ok()) return void(++wrong);
        held = *block;
        if (!std::ranges::equal(held.bytes(),
                                ByteSpan(content).subspan(index * uint64_t{kBlockBytes}, held.bytes().size())))
          ++wrong;
      }
    });
  }
  for (std::thread& t : readers) t.join();
  EXPECT_EQ(wrong, 0);
  const ReadStats stats = engine().stats();
  EXPECT_LE(stats.peak_bytes, kMinReadBudgetBytes);
  EXPECT_GT(stats.peak_bytes, kMinReadBudgetBytes / 2) << "the test does not fill the budget";
}

TEST_F(ReadEngineTest, TheDeepestChainReadsInTheSmallestBudget) {
  TensorId id = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(300'000, 1));
  for (int depth = 1; depth <= 8; ++depth) id = builder_.AddDelta(id, depth);
  MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = 0});
  ExpectReads(id);
  const TensorId too_deep = builder_.AddDelta(id, 9);
  EXPECT_EQ(ReadAll(too_deep).status().code(), StatusCode::kCorruption);
}

TEST_F(ReadEngineTest, ReadingAChainOfSplitViewsIsNotExponential) {
  constexpr uint64_t kElems = 65'536, kSegments = 64;
  TensorId id = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(kElems, 1));
  for (int depth = 1; depth <= 8; ++depth) {
    const TensorId base = std::exchange(id, builder_.AddDelta(id, depth));
    Rewrite(id, [&](TensorRecord& r) {
      r.MutableViewOf(InputRole::kBase).clear();
      for (uint64_t i = 0; i < kSegments; ++i)
        r.MutableViewOf(InputRole::kBase)
            .push_back({.elems = kElems / kSegments, .base = base, .base_offset_elems = i * (kElems / kSegments)});
    });
  }
  ExpectReads(id);
}

TEST_F(ReadEngineTest, ABlockLargerThanTheBudgetIsRefused) {
  const TensorId id = builder_.AddRaw(DType::kF64, Bytes(8 * kMiB), kMaxBlockElems);
  MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = 0});
  EXPECT_EQ(ReadAll(id).status().code(), StatusCode::kResourceExhausted);
  MakeEngine({.memory_budget_bytes = 2 * kMinReadBudgetBytes, .prefetch_bytes = 0});
  ExpectReads(id);
}

// Runs `body` on n threads.
void OnThreads(int n, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < n; ++t) threads.emplace_back([&, t] { body(t); });
  for (std::thread& t : threads) t.join();
}

TEST_F(ReadEngineTest, ABlockThatManyWantIsDecodedOnce) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 1000);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(id)}));
  std::atomic<int> gets{0};
  builder_.store.SetHook([&](std::string_view) {
    ++gets;
    while (engine().stats().waits < 7) std::this_thread::yield();
    return OkStatus();
  });
  std::atomic<int> right{0};
  OnThreads(8, [&](int) {
    Bytes out(1000);
    const auto n = engine().Read(file, 0, out);
    if (n.ok() && out == builder_.content(id)) ++right;
  });
  EXPECT_EQ(right, 8);
  EXPECT_EQ(gets, 1);
  EXPECT_EQ(engine().stats().decoded_blocks, 1u);
}

TEST_F(ReadEngineTest, ABaseBlockThatManyWantIsDecodedOnce) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(100'000, 1));
  std::vector<FileRef> files;
  std::vector<TensorId> deltas;
  for (int i = 0; i < 4; ++i) {
    deltas.push_back(builder_.AddDelta(base, 2 + i));
    files.push_back(Open(builder_.AddFile({builder_.Whole(deltas[i])})));
  }
  const std::string base_key = builder_.KeyOfBlock(base, 0);
  std::atomic<int> gets{0};
  builder_.store.SetHook([&](std::string_view key) {
    if (key != base_key) return OkStatus();
    ++gets;
    while (engine().stats().waits < 3) std::this_thread::yield();
    return OkStatus();
  });
  std::atomic<int> right{0};
  OnThreads(4, [&](int t) {
    Bytes out(200'000);
    if (engine().Read(files[t], 0, out).ok() && out == builder_.content(deltas[t])) ++right;
  });
  EXPECT_EQ(right, 4);
  EXPECT_EQ(gets, 1);
}

TEST_F(ReadEngineTest, AFailureReachesAllWhoWaitAndIsNotRemembered) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 1000);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(id)}));
  builder_.store.SetHook([&](std::string_view) -> Status {
    while (engine().stats().waits < 7) std::this_thread::yield();
    return IoError("the disk is gone");
  });
  std::atomic<int> failed{0};
  OnThreads(8, [&](int) {
    Bytes out(1000);
    const auto n = engine().Read(file, 0, out);
    if (n.status().code() == StatusCode::kIo && n.status().message().find("the disk is gone") != std::string::npos)
      ++failed;
  });
  EXPECT_EQ(failed, 8);
  builder_.store.SetHook(nullptr);
  Bytes out(1000);
  ASSERT_TRUE(engine().Read(file, 0, out).ok());
  EXPECT_TRUE(out == builder_.content(id));
}

TEST_F(ReadEngineTest, ACorruptBlockIsAnErrorThatNamesItAndIsNotCached) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(300'000, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(delta)}));
  for (const TensorId& id : {base, delta}) {
    const std::string key = builder_.KeyOfBlock(id, 1);
    const auto value = builder_.store.Get(Family::kBlocks, key);
    const Bytes good(value->bytes().begin(), value->bytes().end());
    Bytes out(4096);
    for (const size_t at : {size_t{0}, size_t{8}, good.size() / 2, good.size() - 1}) {
      Bytes bad = good;
      bad[at] ^= std::byte{16};
      builder_.Put(Family::kBlocks, key, bad);
      const Status status = engine().Read(file, kBlockBytes + 5, out).status();
      EXPECT_EQ(status.code(), StatusCode::kCorruption);
      EXPECT_THAT(std::string(status.message()), HasSubstr("tensor " + Hex(id) + ", block 1"));
      EXPECT_TRUE(engine().Read(file, 5, out).ok()) << "the other blocks can be read";
    }
    // Its checksum is right but its content is not a block.
    builder_.Put(Family::kBlocks, key, SealBlock(RandomBytes(good.size(), 3)));
    EXPECT_EQ(engine().Read(file, kBlockBytes + 5, out).status().code(), StatusCode::kCorruption);
    builder_.Put(Family::kBlocks, key, SealBlock(Bytes(2 * kBlockBytes)));
    EXPECT_EQ(engine().Read(file, kBlockBytes + 5, out).status().code(), StatusCode::kCorruption);
    builder_.Put(Family::kBlocks, key, {});
    EXPECT_EQ(engine().Read(file, kBlockBytes + 5, out).status().code(), StatusCode::kCorruption);
    builder_.Delete(Family::kBlocks, key);
    const Status lost = engine().Read(file, kBlockBytes + 5, out).status();
    EXPECT_EQ(lost.code(), StatusCode::kCorruption);
    EXPECT_THAT(std::string(lost.message()), HasSubstr("remove the models that need it, prune, and push them again"));
    builder_.Put(Family::kBlocks, key, good);
    ASSERT_TRUE(engine().Read(file, kBlockBytes + 5, out).ok());
    EXPECT_TRUE(std::equal(out.begin(), out.end(), builder_.content(delta).begin() + kBlockBytes + 5));
    engine().DropCaches();
  }
}

TEST_F(ReadEngineTest, RecordsThatContradictEachOtherAreRefused) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(100'000, 1));
  const TensorId ints = builder_.AddRaw(DType::kI16, RandomBytes(200'000, 2), 1000);
  const TensorId delta = builder_.AddDelta(base, 2);
  const auto expect_refused = [&](const TensorId& id, const char* why,
                                  const std::function<void(TensorRecord&)>& change) {
    Rewrite(id, change);
    engine().DropCaches();
    const Status status = engine().OpenTensorById(id).status();
    EXPECT_EQ(status.code(), StatusCode::kCorruption) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(Hex(id))) << why;
    Rewrite(id, [](TensorRecord&) {});
    engine().DropCaches();
    EXPECT_TRUE(engine().OpenTensorById(id).ok());
  };
  expect_refused(delta, "base shorter",
                 [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base_offset_elems = 1; });
  expect_refused(delta, "view shorter", [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].elems -= 1; });
  expect_refused(delta, "view longer", [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].elems += 1; });
  expect_refused(delta, "no view", [](TensorRecord& r) { r.MutableViewOf(InputRole::kBase).clear(); });
  expect_refused(delta, "depth 0 with a base", [](TensorRecord& r) { r.depth = 0; });
  expect_refused(delta, "its own base", [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = delta; });
  expect_refused(delta, "integers predict no floats",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = ints; });
  expect_refused(delta, "base missing",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base.ordinal = 9; });
  expect_refused(delta, "too deep", [](TensorRecord& r) { r.depth = 200; });
  expect_refused(base, "depth without a base", [](TensorRecord& r) { r.depth = 1; });
  expect_refused(base, "another dtype", [](TensorRecord& r) { r.dtype = DType::kF16; });
  expect_refused(base, "another size", [](TensorRecord& r) { r.bytes += 2, r.shape = {r.bytes / 2}; });
  expect_refused(base, "a block too many", [](TensorRecord& r) { r.block_count += 1; });
  expect_refused(base, "a view without a delta",
                 [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase) = {{.elems = 100'000, .base = ints}}; });

  // A cycle: each names the other.
  const TensorId other = builder_.AddDelta(delta, 3);
  Rewrite(delta, [&](TensorRecord& r) { r.MutableViewOf(InputRole::kBase)[0].base = other, r.depth = 3; });
  engine().DropCaches();
  EXPECT_EQ(engine().OpenTensorById(other).status().code(), StatusCode::kCorruption);
}

TEST_F(ReadEngineTest, ADeltaWhoseBaseNamesItsOwnBlockIsRefused) {
  const TensorId base = builder_.AddRaw(DType::kBF16, StoreBuilder::Weights(100'000, 1), 131'072);
  const TensorId delta = builder_.AddDelta(base, 2);
  Rewrite(base, [&](TensorRecord& r) { r.first_block = builder_.known(delta).record.first_block; });
  EXPECT_EQ(ReadAll(delta).status().code(), StatusCode::kCorruption);
}

TEST_F(ReadEngineTest, TensorsThatNameTheSameBlockDoNotReadEachOthersBytes) {
  const TensorId coded = builder_.AddEncoded(Encoding::kZstd, DType::kU8, Bytes(1000, std::byte{'x'}));
  const TensorId raw = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 1000);
  Rewrite(raw, [&](TensorRecord& r) { r.first_block = builder_.known(coded).record.first_block; });
  ExpectReads(coded);
  EXPECT_EQ(ReadAll(raw).status().code(), StatusCode::kCorruption) << "not what is cached for the other";
}

TEST_F(ReadEngineTest, FilesThatContradictTheirTensorsAreRefused) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 100);
  Extent longer = builder_.Whole(id);
  longer.bytes += 1;
  TensorId absent = id;
  absent.ordinal = 5;
  const std::vector<Extent> bad = {longer, StoreBuilder::Part(id, 990, 11), StoreBuilder::Part(id, 1001, 0x1000),
                                   StoreBuilder::Part(absent, 0, 10)};
  for (const Extent& extent : bad) {
    const FileRef file = Open(builder_.AddFile({StoreBuilder::Literal(RandomBytes(10, 1)), extent}));
    Bytes out(20);
    EXPECT_TRUE(engine().Read(file, 0, MutableByteSpan(out).first(10)).ok());
    EXPECT_EQ(engine().Read(file, 0, out).status().code(), StatusCode::kCorruption);
  }
  EXPECT_EQ(engine().OpenFileByHash(Sha256Digest{}).status().code(), StatusCode::kNotFound);
  const Sha256Digest sha256 = builder_.AddFile({builder_.Whole(id)});
  builder_.Put(Family::kFiles, FileKey(sha256), RandomBytes(30, 2));
  EXPECT_FALSE(engine().OpenFileByHash(sha256).ok());
}

TEST_F(ReadEngineTest, SequentialReadsArePrefetched) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(4 * kMiB / 2, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const Sha256Digest sha256 = builder_.AddFile({StoreBuilder::Literal(RandomBytes(13, 1)), builder_.Whole(delta)});
  const Bytes& content = builder_.content(delta);
  MakeEngine({.memory_budget_bytes = 64 * kMiB, .prefetch_bytes = kMiB});
  const FileRef file = Open(sha256);
  Bytes out(128 * kKiB);
  uint64_t at = 13;
  for (; at < 13 + kMiB; at += out.size()) {
    ASSERT_TRUE(engine().Read(file, at, out).ok());
    ASSERT_TRUE(std::equal(out.begin(), out.end(), content.begin() + at - 13));
    WaitForWorkers();
  }
  EXPECT_GE(engine().stats().prefetched_blocks, 4u);
  const auto reader = std::this_thread::get_id();
  std::atomic<int> gets_by_reader{0};
  builder_.store.SetHook([&](std::string_view) {
    if (std::this_thread::get_id() == reader) ++gets_by_reader;
    return OkStatus();
  });
  for (; at < 13 + content.size(); at += out.size()) {
    ASSERT_TRUE(engine().Read(file, at, out).ok());
    ASSERT_TRUE(std::equal(out.begin(), out.end(), content.begin() + at - 13));
    WaitForWorkers();
  }
  EXPECT_EQ(gets_by_reader, 0) << "the reader found everything prefetched";
  EXPECT_EQ(engine().stats().decoded_blocks, 2 * content.size() / kBlockBytes) << "nothing is decoded twice";
}

TEST_F(ReadEngineTest, RandomReadsAreNotPrefetched) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(32 * kMiB, 1), kBlockBytes);
  const Sha256Digest sha256 = builder_.AddFile({builder_.Whole(id)});
  MakeEngine({.memory_budget_bytes = 64 * kMiB, .prefetch_bytes = kMiB});
  const FileRef file = Open(sha256);
  std::mt19937_64 random(1);
  Bytes out(4096);
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(engine().Read(file, random() % 8000 * 4096, out).ok());
  WaitForWorkers();
  EXPECT_EQ(engine().stats().prefetched_blocks, 0u);
}

TEST_F(ReadEngineTest, PrefetchFillsTheCacheWithinItsShare) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(8 * kMiB, 1), kBlockBytes);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(id)}));
  engine().Prefetch(file, kBlockBytes + 1, 2 * kBlockBytes);
  WaitForWorkers();
  EXPECT_EQ(engine().stats().prefetched_blocks, 3u);
  Bytes out(2 * kBlockBytes);
  ASSERT_TRUE(engine().Read(file, kBlockBytes + 1, out).ok());
  EXPECT_TRUE(std::equal(out.begin(), out.end(), builder_.content(id).begin() + kBlockBytes + 1));
  EXPECT_EQ(engine().stats().misses, 0u);

  MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = 0});
  const FileRef again = Open(builder_.AddFile({builder_.Whole(id)}));
  engine().Prefetch(again, 0, 8 * kMiB);
  WaitForWorkers();
  EXPECT_LE(engine().stats().prefetched_blocks * kBlockBytes, kMinReadBudgetBytes / 4);
  EXPECT_GE(engine().stats().prefetched_blocks * kBlockBytes, kMinReadBudgetBytes / 8);
}

TEST_F(ReadEngineTest, GoesAwayWithPrefetchesQueued) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(8 * kMiB, 1), kBlockBytes);
  const FileRef file = Open(builder_.AddFile({builder_.Whole(id)}));
  std::latch started(1);
  std::atomic<int> gets{0};
  builder_.store.SetHook([&](std::string_view) {
    if (++gets == 1) started.count_down();
    return OkStatus();
  });
  engine().Prefetch(file, 0, 8 * kMiB);
  started.wait();
  engine_.reset();
  const int after = gets;
  pool_.reset();
  EXPECT_EQ(gets, after);
}

TEST_F(ReadEngineTest, OpenFilesPinTheirTensorsAndBases) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(100'000, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  const TensorId second = builder_.AddDelta(delta, 3);
  const TensorId other = builder_.AddRaw(DType::kU8, RandomBytes(10, 4), 10);
  const Sha256Digest a = builder_.AddFile({StoreBuilder::Literal(RandomBytes(3, 1)), builder_.Whole(second)});
  const Sha256Digest b = builder_.AddFile({builder_.Whole(other)});
  EXPECT_TRUE(engine().PinnedTensors().empty());
  FileRef file = Open(a);
  EXPECT_EQ(Open(a), file) << "one object a file";
  EXPECT_THAT(engine().PinnedTensors(), testing::UnorderedElementsAre(base, delta, second));
  FileRef more = Open(b);
  EXPECT_THAT(engine().PinnedTensors(), testing::UnorderedElementsAre(base, delta, second, other));
  file.reset();
  EXPECT_THAT(engine().PinnedTensors(), testing::UnorderedElementsAre(other));
}

TEST_F(ReadEngineTest, NoFileIsOpenedWhileOpensAreHeld) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(10, 4), 10);
  const Sha256Digest open = builder_.AddFile({builder_.Whole(id)}), removed = builder_.AddFile({builder_.Whole(id)});
  const FileRef file = Open(open);
  engine().opens_mutex().Lock();
  EXPECT_EQ(Open(open), file) << "it is pinned already";
  std::atomic<bool> asked{false};
  Status status;
  std::thread opener([&] {
    asked = true;
    status = engine().OpenFileByHash(removed).status();
  });
  while (!asked) std::this_thread::yield();
  EXPECT_THAT(engine().PinnedTensors(), testing::ElementsAre(id));
  builder_.Delete(Family::kFiles, FileKey(removed));
  engine().opens_mutex().Unlock();
  opener.join();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
}

TEST_F(ReadEngineTest, AnOpenFileOutlivesItsRecords) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 4), 10);
  const Sha256Digest sha256 = builder_.AddFile({builder_.Whole(id)});
  const FileRef file = Open(sha256);
  builder_.Delete(Family::kFiles, FileKey(sha256));
  Bytes out(1000);
  ASSERT_TRUE(engine().Read(file, 0, out).ok());
  EXPECT_TRUE(out == builder_.content(id));
}

TEST_F(ReadEngineTest, ARecordReadAcrossDropCachesIsNotKept) {
  const TensorId base = builder_.AddEncoded(Encoding::kSelf, DType::kBF16, StoreBuilder::Weights(100'000, 1));
  const TensorId delta = builder_.AddDelta(base, 2);
  builder_.store.SetTensorHook([&](std::string_view key) {
    if (key != TensorKey(base)) return OkStatus();
    // The record of `delta` has been read, and is now removed.
    builder_.Delete(Family::kTensors, TensorKey(delta));
    engine().DropCaches();
    return OkStatus();
  });
  EXPECT_TRUE(engine().OpenTensorById(delta).ok());
  EXPECT_EQ(engine().OpenTensorById(delta).status().code(), StatusCode::kNotFound);
}

TEST_F(ReadEngineTest, ManySmallTensorsStayWithinTheBudget) {
  std::vector<Extent> extents;
  for (int i = 0; i < 5000; ++i) extents.push_back(builder_.Whole(builder_.AddRaw(DType::kU8, RandomBytes(64, i), 64)));
  const Bytes content = builder_.Content(extents);
  const Sha256Digest sha256 = builder_.AddFile(extents);
  MakeEngine({.memory_budget_bytes = kMinReadBudgetBytes, .prefetch_bytes = kMiB});
  const FileRef file = Open(sha256);
  for (int round = 0; round < 2; ++round) {
    Bytes out(content.size());
    ASSERT_EQ(*engine().Read(file, 0, out), content.size());
    EXPECT_TRUE(out == content);
    engine().DropCaches();
  }
  EXPECT_LE(engine().stats().peak_bytes, kMinReadBudgetBytes);
}

TEST_F(ReadEngineTest, ReadTensorChecksItsRange) {
  const TensorId id = builder_.AddRaw(DType::kU8, RandomBytes(1000, 1), 100);
  const TensorRef tensor = *engine().OpenTensorById(id);
  Bytes out(100);
  EXPECT_TRUE(engine().ReadTensor(tensor, 900, out).ok());
  EXPECT_EQ(engine().ReadTensor(tensor, 901, out).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(engine().ReadTensor(tensor, UINT64_MAX, out).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine().ReadTensor(tensor, 1000, MutableByteSpan(out).first(0)).ok());
}

}  // namespace
}  // namespace modelstore
