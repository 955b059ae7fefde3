#include <gtest/gtest.h>

#include "tests/unit/codec/codec_fixture.h"

namespace modelstore::test {
namespace {

TEST(Sampling, LiesWithinTheTensorAndIsBounded) {
  for (const uint64_t elems :
       {uint64_t{0}, uint64_t{1}, kSampleStride, kSampleStride + 1, kMaxSampleWindows * kSampleStride,
        kMaxSampleWindows * kSampleStride + 1, (uint64_t{1} << 40) + 12345}) {
    uint64_t sum = 0, end = 0;
    const uint64_t windows = SampleWindowCount(elems);
    EXPECT_LE(windows, kMaxSampleWindows);
    for (uint64_t w = 0; w < windows; ++w) {
      ASSERT_GE(SampleWindowBegin(elems, w), end) << elems << " " << w;
      end = SampleWindowBegin(elems, w) + SampleWindowElems(elems, w);
      ASSERT_GT(SampleWindowElems(elems, w), 0u) << elems << " " << w;
      ASSERT_LE(end, elems);
      sum += SampleWindowElems(elems, w);
    }
    EXPECT_EQ(SampleElems(elems), sum) << elems;
  }
}

class EveryFloat : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Codec, EveryFloat, testing::ValuesIn(kFloats),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

// Sizes around every boundary of the format: lanes, chunks, one and two streams, blocks.
constexpr size_t kSizes[] = {1,    2,    31,   32,   33,    511,   512,    513,    4097,
                             8191, 8192, 8193, 8224, 16384, 70000, 131072, 131073, 140001};

TEST_P(EveryFloat, SelfCodedComesBack) {
  for (const size_t elems : kSizes) {
    SCOPED_TRACE(elems);
    const Bytes source = NormalTensor(GetParam(), elems, 0.02, static_cast<uint32_t>(elems));
    ExpectRoundTrip(EncodeTensor(GetParam(), source), source);
  }
}

TEST_P(EveryFloat, DeltaComesBack) {
  for (const size_t elems : kSizes) {
    SCOPED_TRACE(elems);
    const Bytes base = NormalTensor(GetParam(), elems, 0.5, 7);
    const Bytes source = Perturbed(GetParam(), base, 0.002, 8);
    ExpectRoundTrip(EncodeTensor(GetParam(), source, GetParam(), base), source);
  }
}

TEST_P(EveryFloat, LargeTensorsUseTheCodec) {
  const size_t elems = 300000;
  const Bytes base = NormalTensor(GetParam(), elems, 0.5, 1);
  const CodedTensor self = EncodeTensor(GetParam(), base);
  EXPECT_EQ(self.frame.encoding, Encoding::kSelf);
  EXPECT_LT(self.bytes(), base.size());
  const Bytes finetune = Perturbed(GetParam(), base, 0.0005, 2);
  const CodedTensor delta = EncodeTensor(GetParam(), finetune, GetParam(), base);
  EXPECT_EQ(delta.frame.encoding, Encoding::kDelta);
  EXPECT_LT(delta.bytes(), self.bytes());
  ExpectRoundTrip(delta, finetune);
}

// Any bytes at all: NaN payloads, infinities, both zeros, denormals; never more than raw.
TEST_P(EveryFloat, EveryPatternComesBack) {
  const uint32_t width = DTypeBytes(GetParam());
  Bytes source;
  if (width <= 2) {
    for (uint32_t round = 0; round < (width == 1 ? 300u : 3u); ++round)
      for (uint32_t p = 0; p < 1u << (8 * width); ++p) PutPattern(source, p, width);
  } else {
    source = RandomBytes(width * 90000, 3);
  }
  const CodedTensor self = EncodeTensor(GetParam(), source);
  ExpectRoundTrip(self, source);
  EXPECT_LE(self.bytes(), source.size() + SerializeFrame(self.frame).size());
  const Bytes base = RandomBytes(source.size(), 4);
  ExpectRoundTrip(EncodeTensor(GetParam(), source, GetParam(), base), source);
}

TEST_P(EveryFloat, SpecialValuesAmongOrdinaryOnes) {
  const uint32_t width = DTypeBytes(GetParam());
  Bytes source = NormalTensor(GetParam(), 50000, 0.02, 5);
  const Bytes base = source;
  std::mt19937 rng(6);
  const uint64_t sign = uint64_t{1} << (8 * width - 1);
  for (const uint64_t pattern : {uint64_t{0}, sign, uint64_t{1}, sign | 1, sign - 1, ~uint64_t{0}})
    for (int i = 0; i < 40; ++i) std::memcpy(source.data() + rng() % 50000 * width, &pattern, width);
  ExpectRoundTrip(EncodeTensor(GetParam(), source), source);
  ExpectRoundTrip(EncodeTensor(GetParam(), source, GetParam(), base), source);
}

TEST(ExactCodec, EveryPairOfFloatsPredicts) {
  for (const DType to : kFloats) {
    for (const DType from : kFloats) {
      SCOPED_TRACE(std::string(DTypeName(from)) + " predicts " + std::string(DTypeName(to)));
      ASSERT_TRUE(CanPredict(from, to));
      const Bytes base = NormalTensor(from, 20000, 0.5, 9);
      Bytes source(20000 * DTypeBytes(to));
      ConvertElements(from, to, base, source);
      const CodedTensor coded = EncodeTensor(to, source, from, base);
      EXPECT_EQ(coded.frame.encoding, Encoding::kDelta);
      // Only the states remain when nothing differs from the prediction.
      EXPECT_LT(coded.bytes(), source.size() / 10 + 600);
      ExpectRoundTrip(coded, source);
    }
  }
}

TEST(ExactCodec, Bf16SavedAsF32CostsNoMoreThanBf16) {
  const Bytes base = NormalTensor(DType::kBF16, 200000, 0.02, 1);
  const Bytes finetune = Perturbed(DType::kBF16, base, 0.0001, 2);
  Bytes wide(finetune.size() * 2);
  ConvertElements(DType::kBF16, DType::kF32, finetune, wide);
  const CodedTensor narrow = EncodeTensor(DType::kBF16, finetune, DType::kBF16, base);
  const CodedTensor coded = EncodeTensor(DType::kF32, wide, DType::kBF16, base);
  EXPECT_EQ(coded.frame.coded_dtype, DType::kBF16);
  EXPECT_NEAR(static_cast<double>(coded.bytes()), static_cast<double>(narrow.bytes()),
              0.02 * static_cast<double>(narrow.bytes()));
  ExpectRoundTrip(coded, wide);
  ExpectRoundTrip(EncodeTensor(DType::kF32, wide), wide);
}

TEST(ExactCodec, OneElementWithLowBitsEndsTheNarrowing) {
  const Bytes narrow = NormalTensor(DType::kBF16, 200000, 0.02, 1);
  Bytes wide(narrow.size() * 2);
  ConvertElements(DType::kBF16, DType::kF32, narrow, wide);
  wide[4 * (16384 + 300)] = std::byte{1};  // between two windows of the sample
  const CodedTensor coded = EncodeTensor(DType::kF32, wide);
  EXPECT_EQ(coded.frame.coded_dtype, DType::kF32);
  ExpectRoundTrip(coded, wide);
}

TEST(ExactCodec, IntegersAndOpaqueBytesAreZstdOrRaw) {
  for (const DType dtype :
       {DType::kOpaque, DType::kBool, DType::kU8, DType::kI8, DType::kI16, DType::kI32, DType::kI64, DType::kU64}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    Bytes regular(DTypeBytes(dtype) * 150000);
    for (size_t i = 0; i < regular.size(); ++i) regular[i] = static_cast<std::byte>(i / 100 % 7);
    const CodedTensor coded = EncodeTensor(dtype, regular);
    EXPECT_LT(coded.bytes(), regular.size() / 10);
    ExpectRoundTrip(coded, regular);
    const Bytes noise = RandomBytes(DTypeBytes(dtype) * 150000, 2);
    const CodedTensor raw = EncodeTensor(dtype, noise);
    EXPECT_LE(raw.bytes(), noise.size() + 16);
    ExpectRoundTrip(raw, noise);
  }
}

TEST(ExactCodec, ConstantTensorsCostNextToNothing) {
  for (const DType dtype : kFloats) {
    Bytes source;
    for (int i = 0; i < 140000; ++i)
      PutPattern(source, NarrowFromF64(dtype, std::bit_cast<uint64_t>(1.0)), DTypeBytes(dtype));
    const CodedTensor coded = EncodeTensor(dtype, source);
    EXPECT_LT(coded.bytes(), 2000u) << DTypeName(dtype);
    ExpectRoundTrip(coded, source);
  }
}

// Encoding is deterministic: the bytes do not depend on how the statistics were gathered.
TEST(ExactCodec, SameBytesHoweverManyBuilders) {
  const Bytes base = NormalTensor(DType::kBF16, 300000, 0.02, 1);
  const Bytes finetune = Perturbed(DType::kBF16, base, 0.0001, 2);
  const CodedTensor one = EncodeTensor(DType::kBF16, finetune, DType::kBF16, base, 1);
  const CodedTensor three = EncodeTensor(DType::kBF16, finetune, DType::kBF16, base, 3);
  EXPECT_EQ(SerializeFrame(one.frame), SerializeFrame(three.frame));
  EXPECT_EQ(one.blocks, three.blocks);
}

TEST_P(EveryFloat, SameBytesFromEveryTarget) {
  const uint32_t width = DTypeBytes(GetParam());
  for (const size_t elems : {33u, 9000u, 200003u}) {
    for (const bool wild : {false, true}) {
      const Bytes base = NormalTensor(GetParam(), elems, 0.5, 1);
      Bytes source = Perturbed(GetParam(), base, 0.002, 2);
      std::mt19937 rng(3);
      for (size_t i = 0; wild && i < source.size() / 50; ++i)
        source[rng() % source.size()] = static_cast<std::byte>(rng());
      std::vector<CodedTensor> self, delta;
      OnEveryTarget([&] {
        self.push_back(EncodeTensor(GetParam(), source));
        delta.push_back(EncodeTensor(GetParam(), source, GetParam(), base));
      });
      for (size_t i = 1; i < self.size(); ++i) {
        EXPECT_EQ(self[i].blocks, self[0].blocks) << elems << ' ' << width;
        EXPECT_EQ(delta[i].blocks, delta[0].blocks) << elems << ' ' << width;
      }
    }
  }
}

// The target of the project on natural weights: exponent-aware self coding near 0.66 of raw for bf16.
TEST(ExactCodec, GaussianBf16SelfCodesToTwoThirds) {
  const Bytes source = NormalTensor(DType::kBF16, 1 << 20, 0.02, 1);
  const CodedTensor coded = EncodeTensor(DType::kBF16, source);
  EXPECT_LT(static_cast<double>(coded.bytes()), 0.668 * static_cast<double>(source.size()));
}

// An element that the statistics have not seen (a source that changes while it is stored) is an error, not other bytes.
TEST(ExactCodec, UnseenElementIsAnError) {
  Bytes source = NormalTensor(DType::kBF16, 20000, 0.02, 1);
  const EncodePlan plan = PlanTensor(DType::kBF16, 20000, SampleOf(source, 20000, 2), DType::kBF16, source);
  ASSERT_EQ(plan.encoding, Encoding::kDelta);
  FrameBuilder builder(plan);
  builder.AddBlock(0, source, source);
  Result<BlockEncoder> encoder = std::move(builder).Finish();
  ASSERT_TRUE(encoder.ok());
  Bytes changed = source;
  changed[777] ^= std::byte{0x40};
  OnEveryTarget([&] {
    Bytes out;
    EXPECT_EQ(encoder->Encode(0, changed, source, &out).code(), StatusCode::kInternal);
  });
}

TEST(ExactCodec, PlainFramesAndEmptyTensors) {
  const CodedTensor empty = EncodeTensor(DType::kBF16, {});
  EXPECT_EQ(empty.frame.BlockCount(), 0u);
  const Result<Frame> parsed = ParseFrame(SerializeFrame(PlainFrame(Encoding::kZstd, DType::kI32, 0)));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->BlockCount(), 0u);
}

// --- hostile blocks

class Hostile : public testing::Test {
 protected:
  const Bytes base_ = NormalTensor(DType::kBF16, 20000, 0.02, 1);
  const Bytes source_ = Perturbed(DType::kBF16, base_, 0.0001, 2);
  const CodedTensor delta_ = EncodeTensor(DType::kBF16, source_, DType::kBF16, base_);
  const CodedTensor self_ = EncodeTensor(DType::kBF16, source_);
};

TEST_F(Hostile, EveryTruncationFails) {
  ASSERT_EQ(delta_.frame.encoding, Encoding::kDelta);
  ASSERT_EQ(self_.frame.encoding, Encoding::kSelf);
  OnEveryTarget([&] {
    for (const CodedTensor* coded : {&delta_, &self_}) {
      Bytes out(BlockBytes(coded->frame, 0));
      for (size_t n = 0; n < coded->blocks[0].size(); n = n < 400 ? n + 1 : n + 97) {
        const Bytes cut(coded->blocks[0].begin(), coded->blocks[0].begin() + static_cast<ptrdiff_t>(n));
        EXPECT_EQ(DecodeBlock(coded->frame, 0, cut, coded->prediction, out).code(), StatusCode::kCorruption) << n;
      }
    }
  });
}

TEST_F(Hostile, FlippedBitsNeitherCrashNorDifferBetweenTargets) {
  std::mt19937 rng(3);
  for (const CodedTensor* coded : {&delta_, &self_}) {
    for (int round = 0; round < 60; ++round) {
      Bytes bad = coded->blocks[0];
      for (int flips = 0; flips < 3; ++flips) bad[rng() % bad.size()] ^= static_cast<std::byte>(1u << rng() % 8);
      std::vector<std::pair<StatusCode, Bytes>> results;
      OnEveryTarget([&] {
        Bytes out(BlockBytes(coded->frame, 0));
        const Status s = DecodeBlock(coded->frame, 0, bad, coded->prediction, out);
        results.emplace_back(s.code(), s.ok() ? out : Bytes{});
      });
      for (const auto& r : results) EXPECT_EQ(r, results[0]);
    }
  }
}

TEST_F(Hostile, AnotherBaseIsNoticed) {
  CodedTensor wrong = delta_;
  wrong.prediction = NormalTensor(DType::kBF16, 20000, 0.5, 99);
  OnEveryTarget([&] { EXPECT_EQ(DecodeTensor(wrong).status().code(), StatusCode::kCorruption); });
}

TEST_F(Hostile, TrailingBytesAreNoticed) {
  CodedTensor longer = delta_;
  longer.blocks[0].resize(longer.blocks[0].size() + 2);
  OnEveryTarget([&] { EXPECT_EQ(DecodeTensor(longer).status().code(), StatusCode::kCorruption); });
}

TEST_F(Hostile, FramesCutOrFlippedAnywhereNeverCrash) {
  std::mt19937 rng(4);
  for (const CodedTensor* coded : {&delta_, &self_}) {
    const Bytes frame = SerializeFrame(coded->frame);
    for (size_t n = 0; n < frame.size(); ++n) EXPECT_FALSE(ParseFrame(ByteSpan(frame).first(n)).ok()) << n;
    for (int round = 0; round < 3000; ++round) {
      Bytes bad = frame;
      bad[rng() % bad.size()] ^= static_cast<std::byte>(1u << rng() % 8);
      const Result<Frame> parsed = ParseFrame(bad);
      if (!parsed.ok() || parsed->BlockCount() == 0 || round % 20 != 0) continue;
      if (parsed->elems != coded->frame.elems || parsed->block_elems < parsed->elems) continue;
      Bytes out(BlockBytes(*parsed, 0));
      if (parsed->encoding == Encoding::kDelta && parsed->coded_dtype != DType::kBF16) continue;
      OnEveryTarget([&] { (void)DecodeBlock(*parsed, 0, coded->blocks[0], base_, out).ok(); });
    }
  }
}

TEST(Frames, ImpossibleOnesAreRefused) {
  const auto parse = [](std::initializer_list<int> bytes) {
    Bytes b;
    for (const int v : bytes) b.push_back(static_cast<std::byte>(v));
    return ParseFrame(b).status().code();
  };
  EXPECT_EQ(parse({}), StatusCode::kCorruption);
  EXPECT_EQ(parse({0, 9, 9, 10, 8}), StatusCode::kOk);
  EXPECT_EQ(parse({6, 9, 9, 10, 8}), StatusCode::kUnsupported);         // encoding
  EXPECT_EQ(parse({0, 99, 99, 10, 8}), StatusCode::kUnsupported);       // dtype
  EXPECT_EQ(parse({0, 9, 9, 10, 0}), StatusCode::kCorruption);          // no block size
  EXPECT_EQ(parse({0, 9, 9, 10, 8, 0}), StatusCode::kCorruption);       // trailing byte
  EXPECT_EQ(parse({0, 12, 9, 10, 8}), StatusCode::kCorruption);         // plain, yet another coded dtype
  EXPECT_EQ(parse({2, 10, 10, 10, 8, 0, 0}), StatusCode::kCorruption);  // an integer type entropy-coded
  EXPECT_EQ(parse({2, 9, 9, 10, 8, 2, 0}), StatusCode::kUnsupported);   // flag
  EXPECT_EQ(parse({2, 9, 9, 10, 8, 0, 0}), StatusCode::kOk);
  EXPECT_EQ(parse({2, 9, 9, 10, 8, 0, 0, 0}), StatusCode::kCorruption);     // a byte after the tables
  EXPECT_EQ(parse({2, 9, 9, 10, 8, 0, 1, 0x80}), StatusCode::kCorruption);  // padding that is not zero
  EXPECT_EQ(parse({3, 9, 9, 10, 8, 1, 0, 0}), StatusCode::kCorruption);     // low_bit in a delta
  EXPECT_EQ(parse({2, 9, 9, 10, 8, 0, 5}), StatusCode::kCorruption);        // classes
  EXPECT_EQ(parse({0, 9, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 8}),
            StatusCode::kCorruption);  // elements
}

}  // namespace
}  // namespace modelstore::test
