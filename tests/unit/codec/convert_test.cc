#include "codec/kernels/convert.h"

#include <gtest/gtest.h>

#include <cmath>

#include "codec/kernels/value_map.h"
#include "tests/unit/codec/codec_fixture.h"

namespace modelstore::test {
namespace {

TEST(Convert, WideningF32IsTheHardwaresConversion) {
  std::mt19937 rng(1);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t p = i < 4096 ? static_cast<uint32_t>(i) << 20 | 1 : rng();
    const float f = std::bit_cast<float>(p);
    if (std::isnan(f)) continue;
    EXPECT_EQ(WidenToF64(DType::kF32, p), std::bit_cast<uint64_t>(static_cast<double>(f))) << p;
  }
}

TEST(Convert, NarrowingToF32IsTheHardwaresConversion) {
  std::mt19937_64 rng(2);
  for (int i = 0; i < 400000; ++i) {
    uint64_t p = rng();
    if (i % 2 == 0) p = (p & 0x800fffffffffffff) | (uint64_t{1023 - 150 + rng() % 290} << 52);  // around F32's range
    if (i % 8 == 0) p &= ~uint64_t{0x1fffffff} | (uint64_t{1} << 28);                           // ties
    const double d = std::bit_cast<double>(p);
    if (std::isnan(d)) continue;
    EXPECT_EQ(NarrowFromF64(DType::kF32, p), std::bit_cast<uint32_t>(static_cast<float>(d))) << std::hex << p;
  }
}

TEST(Convert, EverySmallFloatSurvivesWidening) {
  for (const DType dtype : {DType::kF8E4M3, DType::kF8E5M2, DType::kF16, DType::kBF16}) {
    const uint32_t bits = DTypeBytes(dtype) * 8;
    for (uint32_t p = 0; p < 1u << bits; ++p) {
      const uint64_t wide = WidenToF64(dtype, p);
      if (std::isnan(std::bit_cast<double>(wide))) {
        EXPECT_TRUE(std::isnan(std::bit_cast<double>(WidenToF64(dtype, NarrowFromF64(dtype, wide)))));
        continue;
      }
      EXPECT_EQ(NarrowFromF64(dtype, wide), p) << DTypeName(dtype) << ' ' << p;
    }
  }
}

TEST(Convert, KnownValues) {
  EXPECT_EQ(NarrowFromF64(DType::kBF16, std::bit_cast<uint64_t>(1.0)), 0x3f80u);
  EXPECT_EQ(NarrowFromF64(DType::kF16, std::bit_cast<uint64_t>(65504.0)), 0x7bffu);
  EXPECT_EQ(NarrowFromF64(DType::kF16, std::bit_cast<uint64_t>(65520.0)), 0x7c00u);  // ties to infinity
  EXPECT_EQ(NarrowFromF64(DType::kF16, std::bit_cast<uint64_t>(5.960464477539063e-08)), 1u);
  EXPECT_EQ(NarrowFromF64(DType::kF16, std::bit_cast<uint64_t>(2.9e-08)), 0u);
  EXPECT_EQ(NarrowFromF64(DType::kF8E4M3, std::bit_cast<uint64_t>(448.0)), 0x7eu);
  EXPECT_EQ(NarrowFromF64(DType::kF8E4M3, std::bit_cast<uint64_t>(1e9)), 0x7eu);  // no infinity: the largest
  EXPECT_EQ(NarrowFromF64(DType::kF8E5M2, std::bit_cast<uint64_t>(-1e9)), 0xfcu);
}

TEST(Convert, QuickPathsAgreeWithTheGeneralOne) {
  const Bytes f32 = RandomBytes(4 * 50000, 3);
  Bytes bf16(2 * 50000), back(4 * 50000);
  ConvertFloats(DType::kF32, DType::kBF16, f32.data(), bf16.data(), 50000);
  ConvertFloats(DType::kBF16, DType::kF32, bf16.data(), back.data(), 50000);
  for (size_t i = 0; i < 50000; ++i) {
    uint32_t p, w;
    uint16_t n;
    std::memcpy(&p, f32.data() + 4 * i, 4);
    std::memcpy(&n, bf16.data() + 2 * i, 2);
    std::memcpy(&w, back.data() + 4 * i, 4);
    EXPECT_EQ(w, static_cast<uint32_t>(n) << 16);
    if (std::isnan(std::bit_cast<float>(p))) continue;
    EXPECT_EQ(n, NarrowFromF64(DType::kBF16, WidenToF64(DType::kF32, p))) << std::hex << p;
  }
}

TEST(ValueMap, IsABijectionThatKeepsOrder) {
  for (uint32_t p = 0; p < 65536; ++p) {
    const uint16_t u = static_cast<uint16_t>(p);
    EXPECT_EQ(FromOrdered(Ordered(u)), u);
    EXPECT_EQ(UnZigZag(ZigZag(u)), u);
    for (const bool low : {false, true}) EXPECT_EQ(FromSelfValue(SelfValue(u, low), low), u);
    EXPECT_EQ(FromDeltaValue(DeltaValue(u, uint16_t{0x3c01}), uint16_t{0x3c01}), u);
  }
  EXPECT_EQ(Ordered<uint16_t>(0x8000) + 1, Ordered<uint16_t>(0));  // -0 lies just below +0
  EXPECT_LT(Ordered<uint32_t>(std::bit_cast<uint32_t>(-1.5f)), Ordered<uint32_t>(std::bit_cast<uint32_t>(-1.25f)));
  EXPECT_EQ(DeltaValue<uint16_t>(0x3f81, 0x3f80), 2);
  EXPECT_EQ(DeltaValue<uint16_t>(0x3f7f, 0x3f80), 1);
}

}  // namespace
}  // namespace modelstore::test
