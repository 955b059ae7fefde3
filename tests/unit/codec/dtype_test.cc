#include "codec/tensor/dtype.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

TEST(DType, NamesRoundTrip) {
  for (uint8_t number = 0; number < kDTypeCount; ++number) {
    const auto dtype = static_cast<DType>(number);
    EXPECT_TRUE(DTypeIsKnown(number));
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype) << DTypeName(dtype);
  }
  EXPECT_FALSE(DTypeIsKnown(kDTypeCount));
  EXPECT_FALSE(DTypeIsKnown(255));
}

TEST(DType, NumbersAreOnDisk) {
  EXPECT_EQ(DTypeFromName("BOOL"), static_cast<DType>(1));
  EXPECT_EQ(DTypeFromName("F8_E4M3"), static_cast<DType>(4));
  EXPECT_EQ(DTypeFromName("F16"), static_cast<DType>(8));
  EXPECT_EQ(DTypeFromName("BF16"), static_cast<DType>(9));
  EXPECT_EQ(DTypeFromName("F32"), static_cast<DType>(12));
  EXPECT_EQ(DTypeFromName("F64"), static_cast<DType>(15));
}

TEST(DType, Sizes) {
  EXPECT_EQ(DTypeBytes(DType::kOpaque), 1u);
  EXPECT_EQ(DTypeBytes(DType::kBool), 1u);
  EXPECT_EQ(DTypeBytes(DType::kF8E5M2), 1u);
  EXPECT_EQ(DTypeBytes(DType::kBF16), 2u);
  EXPECT_EQ(DTypeBytes(DType::kI32), 4u);
  EXPECT_EQ(DTypeBytes(DType::kF64), 8u);
}

TEST(DType, Floats) {
  for (const DType dtype : {DType::kF8E4M3, DType::kF8E5M2, DType::kF16, DType::kBF16, DType::kF32, DType::kF64})
    EXPECT_TRUE(DTypeIsFloat(dtype)) << DTypeName(dtype);
  for (const DType dtype : {DType::kOpaque, DType::kBool, DType::kU8, DType::kI16, DType::kU32, DType::kI64})
    EXPECT_FALSE(DTypeIsFloat(dtype)) << DTypeName(dtype);
}

TEST(DType, UnknownNamesAndNumbersAreOpaque) {
  for (const char* name : {"", "bf16", "BF16 ", "F4", "F6_E2M3", "F8_E8M0", "C64", "OPAQUE"})
    EXPECT_EQ(DTypeFromName(name), DType::kOpaque) << name;
  EXPECT_EQ(DTypeBytes(static_cast<DType>(200)), 1u);
  EXPECT_EQ(DTypeName(static_cast<DType>(200)), "OPAQUE");
}

}  // namespace
}  // namespace modelstore
