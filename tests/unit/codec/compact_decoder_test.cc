// Rebuilding compact tensors: against a reference written straight from docs/format.md, on every CPU target.
#include "codec/decode/compact_decoder.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "codec/kernels/compact_rebuild.h"
#include "codec/kernels/level_tokens.h"
#include "codec/kernels/value_map.h"
#include "tests/unit/codec/compact_fixture.h"

namespace modelstore::test {
namespace {

// --- The reference: element by element, rounding on the numbers' values in long arithmetic.

double ValueOf(DType dtype, uint64_t pattern) { return std::bit_cast<double>(WidenToF64(dtype, pattern)); }

uint64_t LargestFinite(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3:
      return 0x7e;
    case DType::kF8E5M2:
      return 0x7b;
    case DType::kF16:
      return 0x7bff;
    case DType::kBF16:
      return 0x7f7f;
    case DType::kF32:
      return 0x7f7fffff;
    default:
      return 0x7fefffffffffffff;
  }
}

uint32_t ReferenceDither(uint64_t e, uint32_t seed) {
  uint32_t x = static_cast<uint32_t>(e) ^ (static_cast<uint32_t>(e >> 32) * 0x85ebca6bu) ^ seed;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x >> 16;
}

uint64_t ReferenceRound(DType dtype, uint64_t p, float a, uint32_t h) {
  const uint64_t sign_bit = uint64_t{1} << (DTypeBytes(dtype) * 8 - 1);
  const double value = ValueOf(dtype, p);
  if (!std::isfinite(value)) return p;
  if (dtype == DType::kF64) return std::bit_cast<uint64_t>(value + static_cast<double>(a));
  const float y = static_cast<float>(value) + a;
  const uint64_t sign = std::signbit(y) ? sign_bit : 0;
  if (std::isinf(y)) return sign | LargestFinite(dtype);
  if (dtype == DType::kF32) return std::bit_cast<uint32_t>(y);
  if (y == 0) return sign;
  // |y| = m 2^t, m of 24 bits (fewer where y is subnormal).
  int exponent = 0;
  std::frexp(std::fabs(y), &exponent);
  const int t = std::max(exponent - 24, -149);
  const uint64_t m = static_cast<uint64_t>(std::ldexp(static_cast<double>(std::fabs(y)), -t));
  // The dtype's unit in the last place at y.
  const FloatLayout layout = FloatLayoutOf(dtype);
  const int least = 1 - static_cast<int>(layout.exponent_mask >> 1) - static_cast<int>(layout.exponent_shift);
  const int unit = std::max(exponent - 1 - static_cast<int>(layout.exponent_shift), least);
  const int d = unit - t;
  if (d >= 40) return sign;
  const uint64_t r = static_cast<uint64_t>(std::floor(std::ldexp(static_cast<double>(h), d - 16)));
  const double result = std::ldexp(static_cast<double>((m + r) >> d), t + d);
  const double largest = ValueOf(dtype, LargestFinite(dtype));
  if (result >= largest) return sign | LargestFinite(dtype);
  return sign | NarrowFromF64(dtype, std::bit_cast<uint64_t>(result));
}

Bytes Reference(const CompactModel& m) {
  Bytes out;
  const uint32_t width = DTypeBytes(m.frame.dtype);
  for (size_t i = 0; i < m.levels.size(); ++i) {
    const CompactSegment& s = m.frame.compact->segments[i];
    const CompactModel::Levels& l = m.levels[i];
    const auto wide = [](uint16_t pattern) { return std::bit_cast<float>(uint32_t{pattern} << 16); };
    uint64_t factor_row = 0;
    for (uint64_t row = 0; row < s.rows; ++row) {
      const bool has = s.row_mask.empty() || (s.row_mask[row / 64] >> (row % 64) & 1) != 0;
      for (uint64_t column = 0; column < s.columns; ++column) {
        volatile float a = 0;  // each operation rounded by itself
        for (uint32_t k = 0; has && k < s.rank; ++k) {
          const volatile float w = wide(l.scales[k]) * l.left[factor_row * s.rank + k];
          const volatile float product = w * l.right[k * s.columns + column];
          a = a + product;
        }
        const uint64_t in_segment = row * s.columns + column;
        const int q = s.has_residual ? l.residual[in_segment] : 0;
        if (q != 0) {
          const float magnitude =
              static_cast<float>(std::abs(q)) - static_cast<float>(s.biases[std::min(std::abs(q), 3) - 1]) / 64;
          const float step = wide(l.steps[s.group_elems == 0 ? 0 : in_segment / s.group_elems]);
          const volatile float product = (q < 0 ? -magnitude : magnitude) * step;
          a = a + product;
        }
        const uint64_t e = s.first_elem + in_segment;
        uint64_t p = 0;
        std::memcpy(&p, m.base.data() + e * width, width);
        PutPattern(out,
                   ReferenceRound(m.frame.dtype, p, a, s.nearest ? 0x8000 : ReferenceDither(e, m.frame.compact->seed)),
                   width);
      }
      factor_row += has ? 1 : 0;
    }
  }
  return out;
}

uint64_t InputBytes(const CompactInputs& in) {
  return in.right.size() + in.left.size() + in.residual.size() + in.scales.size() + in.steps.size();
}

Result<Bytes> Rebuild(const CompactModel& m) {
  const uint32_t width = DTypeBytes(m.frame.dtype);
  Bytes out(m.frame.elems * width);
  uint64_t next = 0;
  for (uint32_t b = 0; b < m.frame.BlockCount(); ++b) {
    uint64_t in_block = 0;
    const std::vector<CompactPiece> pieces = CompactPieces(m.frame, b);
    for (const CompactPiece& piece : pieces) {
      EXPECT_EQ(piece.block_begin, in_block);
      EXPECT_EQ(piece.segment->first_elem + piece.begin, next);
      CompactScratch scratch;
      const CompactInputs inputs = InputsOf(m, piece);
      const size_t at = next * width, bytes = piece.elems * width;
      RETURN_IF_ERROR(RebuildPiece(m.frame, piece, inputs, ByteSpan(m.base).subspan(at, bytes), scratch,
                                   MutableByteSpan(out).subspan(at, bytes)));
      EXPECT_LE(pieces.capacity() * sizeof(CompactPiece) + InputBytes(inputs) + scratch.levels.capacity() +
                    scratch.floats.capacity() * sizeof(float),
                MaxPieceBytes(m.frame));
      in_block += piece.elems;
      next += piece.elems;
    }
    EXPECT_EQ(in_block, m.frame.BlockElems(b));
  }
  EXPECT_EQ(next, m.frame.elems);
  return out;
}

void ExpectReference(const CompactModel& m) {
  const Bytes expected = Reference(m);
  OnEveryTarget([&] {
    const Result<Bytes> out = Rebuild(m);
    ASSERT_TRUE(out.ok()) << out.status().ToString();
    const size_t at =
        static_cast<size_t>(std::mismatch(out->begin(), out->end(), expected.begin()).first - out->begin());
    EXPECT_EQ(at, expected.size()) << "the first byte that differs";
  });
}

class EveryFloatCompact : public testing::TestWithParam<DType> {};

TEST_P(EveryFloatCompact, OddShapesAndBlockEdges) {
  for (const uint32_t block_elems : {97u, 1000u, 4096u, 1u << 17})
    ExpectReference(MakeModel(GetParam(), OddShapes(), block_elems, block_elems));
}

TEST_P(EveryFloatCompact, LargeAndTinyScales) {
  const std::vector<CompactSegment> segments = {WithResidual(Plain(20, 50, 3), 7), Plain(8, 64, 8),
                                                Nearest(Plain(9, 50, 3))};
  for (const float scale : {0x1p-130f, 1e-9f, 1.0f, 1e6f, 0x1p57f})
    ExpectReference(MakeModel(GetParam(), segments, 777, 5, scale));
}

INSTANTIATE_TEST_SUITE_P(Compact, EveryFloatCompact, testing::ValuesIn(kFloats),
                         [](const auto& of) { return std::string(DTypeName(of.param)); });

TEST(CompactDecoder, ManySegmentsInABlock) {
  std::vector<CompactSegment> segments;
  for (uint64_t i = 0; i < 300; ++i) segments.push_back(Plain(1 + i % 3, 1 + i % 5, i % 2));
  ExpectReference(MakeModel(DType::kBF16, segments, 100, 3));
}

TEST(CompactDecoder, NoDeltaGivesTheBase) {
  CompactModel m = MakeModel(DType::kBF16, {Plain(50, 300, 0)}, 4096, 1);
  const Result<Bytes> out = Rebuild(m);
  ASSERT_TRUE(out.ok());
  for (size_t i = 0; i < m.base.size(); i += 2) {
    uint16_t before, after;
    std::memcpy(&before, m.base.data() + i, 2);
    std::memcpy(&after, out->data() + i, 2);
    ASSERT_EQ(before == 0x8000 ? 0 : before, after);  // -0 + 0 = 0
  }
}

// The mean of many dithered roundings is the value that was rounded.
TEST(CompactDecoder, ChangesBelowTheLastPlaceSurviveOnAverage) {
  constexpr size_t kN = 1 << 16;
  Bytes base;
  for (size_t i = 0; i < kN; ++i) PutPattern(base, 0x3f80, 2);  // 1.0: steps of 2^-7
  const std::vector<float> sums(kN, 0.125f / 128);
  Bytes out(kN * 2);
  RoundCompact(DType::kBF16, base.data(), sums.data(), kN, 0, 42, false, out.data());
  double mean = 0;
  for (size_t i = 0; i < kN; ++i) {
    uint16_t pattern;
    std::memcpy(&pattern, out.data() + i * 2, 2);
    mean += (ValueOf(DType::kBF16, pattern) - 1) * 128 / kN;
  }
  EXPECT_NEAR(mean, 0.125, 0.006);
}

TEST(CompactDecoder, DitherGoesOnAcross2To32) {
  constexpr uint64_t kFirst = (uint64_t{1} << 32) - 21;
  std::mt19937_64 rng(1);
  const Bytes base = NormalTensor(DType::kBF16, 60, 0.1, 3);
  const std::vector<float> sums(60, 1e-4f);
  OnEveryTarget([&] {
    Bytes out(120);
    RoundCompact(DType::kBF16, base.data(), sums.data(), 60, kFirst, 9, false, out.data());
    for (size_t i = 0; i < 60; ++i) {
      uint16_t p, r;
      std::memcpy(&p, base.data() + i * 2, 2);
      std::memcpy(&r, out.data() + i * 2, 2);
      ASSERT_EQ(r, ReferenceRound(DType::kBF16, p, 1e-4f, ReferenceDither(kFirst + i, 9))) << i;
    }
  });
}

TEST(CompactDecoder, RefusesBadTokensScalesAndSizes) {
  const CompactModel good = MakeModel(DType::kBF16, {WithResidual(Plain(10, 20, 3), 50)}, 4096, 1);
  const auto code = [](const CompactModel& m) { return Rebuild(m).status().code(); };
  ASSERT_EQ(code(good), StatusCode::kOk);
  const uint16_t no_token = FromSelfValue(uint16_t{0xffff}, false);
  CompactModel bad = good;
  bad.factors[0] = no_token;
  EXPECT_EQ(code(bad), StatusCode::kCorruption);
  bad = good;
  bad.factors.back() = no_token;
  EXPECT_EQ(code(bad), StatusCode::kCorruption);
  bad = good;
  bad.residual[20] = no_token;
  EXPECT_EQ(code(bad), StatusCode::kCorruption);
  for (const size_t scale : {0, 6}) {  // of a rank, of a group
    for (const uint16_t pattern : {0x7f80, 0xffff, 0x5f80}) {
      bad = good;
      bad.scales[scale] = pattern;
      EXPECT_EQ(code(bad), StatusCode::kCorruption);
    }
    bad.scales[scale] = 0x5f7f;
    EXPECT_EQ(code(bad), StatusCode::kOk);
  }
  const CompactPiece piece = CompactPieces(good.frame, 0)[0];
  CompactScratch scratch;
  Bytes out(400);
  CompactInputs inputs = InputsOf(good, piece);
  inputs.left = inputs.left.first(inputs.left.size() - 2);
  EXPECT_EQ(RebuildPiece(good.frame, piece, inputs, good.base, scratch, out).code(), StatusCode::kCorruption);
  EXPECT_EQ(RebuildPiece(good.frame, piece, InputsOf(good, piece), ByteSpan(good.base).first(398), scratch, out).code(),
            StatusCode::kInternal);
}

TEST(CompactDecoder, AsksForNothingWhereNothingIsKept) {
  const CompactModel m = MakeModel(DType::kBF16, {WithMask(Plain(64, 64, 4), 1, 100000)}, 4096, 1);
  for (const CompactPiece& piece : CompactPieces(m.frame, 0)) {
    EXPECT_EQ(piece.right.count + piece.left.count + piece.residual.count + piece.scales.count + piece.steps.count, 0u);
  }
}

}  // namespace
}  // namespace modelstore::test
