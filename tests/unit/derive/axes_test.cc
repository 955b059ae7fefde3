// Changes of basis in F16: what products with them are, on every CPU target.
#include "catalog/derive/axes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "codec/kernels/convert.h"
#include "codec/kernels/cpu_target.h"

namespace modelstore {
namespace {

const ForAll kBackwards = [](size_t n, const std::function<Status(size_t)>& task) -> Status {
  for (size_t i = n; i-- > 0;) RETURN_IF_ERROR(task(i));
  return OkStatus();
};

std::vector<double> Normal(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> out(n);
  for (double& x : out) x = normal(random) * 0.05;
  return out;
}

Bytes Weights(DType dtype, const std::vector<double>& values) {
  Bytes out(values.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    if (dtype == DType::kF32)
      std::memcpy(out.data() + i * 4, &value, 4);
    else
      ConvertFloats(DType::kF32, dtype, reinterpret_cast<const std::byte*>(&value), out.data() + i * 2, 1);
  }
  return out;
}

double At(DType dtype, const Bytes& bytes, size_t i) {
  float value = 0;
  if (dtype == DType::kF32)
    std::memcpy(&value, bytes.data() + i * 4, 4);
  else
    ConvertFloats(dtype, DType::kF32, bytes.data() + i * 2, reinterpret_cast<std::byte*>(&value), 1);
  return static_cast<double>(value);
}

double At(const Axes& axes, uint64_t i, uint64_t j) { return At(DType::kF16, axes.patterns, i * axes.columns + j); }

TEST(AxesTest, AreTheNearestOfF16) {
  const std::vector<double> values = {0.75, -1.2503, 1e-6, 0};
  const auto axes = *MakeAxes(values, 2, 2);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_NEAR(At(*axes, i / 2, i % 2), values[i], 0x1p-11 * std::abs(values[i]) + 0x1p-25);
  for (const double bad : {double{NAN}, 1e6, -std::numeric_limits<double>::infinity()})
    EXPECT_EQ(MakeAxes(std::vector<double>{bad}, 1, 1).status().code(), StatusCode::kInvalidArgument) << bad;
}

TEST(AxesTest, ProductsAreThoseOfTheMatrices) {
  constexpr uint64_t kRows = 300, kHidden = 70, kKept = 37, kInner = 530;
  const Axes right = **MakeAxes(Normal(kHidden * kKept, 1), kHidden, kKept),
             left = **MakeAxes(Normal(kHidden * kKept, 2), kHidden, kKept);
  std::vector<float> norm;
  for (const double x : Normal(kHidden, 3)) norm.push_back(static_cast<float>(1 + x));
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const double unit = dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-10 : 0x1p-20;
    const uint64_t width = DTypeBytes(dtype);
    const Bytes in = Weights(dtype, Normal(kRows * kHidden, 4)), out = Weights(dtype, Normal(kHidden * kInner, 5));
    Bytes projected(kRows * kKept * width), written(kKept * kInner * width), shortcut(kKept * kKept * width);
    ASSERT_TRUE(ProjectInputs(dtype, in, norm, right, kBackwards, projected).ok());
    ASSERT_TRUE(ProjectOutputs(dtype, out, kInner, left, kBackwards, written).ok());
    ASSERT_TRUE(Shortcut(dtype, left, right, kBackwards, shortcut).ok());
    const auto expect = [&](const Bytes& got, size_t at, double wanted, double size) {
      EXPECT_NEAR(At(dtype, got, at), wanted, unit * std::abs(wanted) + 1e-5 * size) << at;
    };
    for (uint64_t i = 0; i < kRows; i += 7) {
      for (uint64_t j = 0; j < kKept; ++j) {
        double sum = 0;
        for (uint64_t d = 0; d < kHidden; ++d)
          sum += At(dtype, in, i * kHidden + d) * static_cast<double>(norm[d]) * At(right, d, j);
        expect(projected, i * kKept + j, sum, 0.02);
      }
    }
    for (uint64_t i = 0; i < kKept; i += 5) {
      for (uint64_t j = 0; j < kInner; ++j) {
        double sum = 0;
        for (uint64_t d = 0; d < kHidden; ++d) sum += At(left, d, i) * At(dtype, out, d * kInner + j);
        expect(written, i * kInner + j, sum, 0.02);
      }
      for (uint64_t j = 0; j < kKept; ++j) {
        double sum = 0;
        for (uint64_t d = 0; d < kHidden; ++d) sum += At(left, d, i) * At(right, d, j);
        expect(shortcut, i * kKept + j, sum, 0.02);
      }
    }
    // The same bits from every target.
    const CpuTarget before = CurrentCpuTarget();
    for (const CpuTarget target : AvailableCpuTargets()) {
      ForceCpuTarget(target);
      Bytes again(projected.size());
      ASSERT_TRUE(ProjectInputs(dtype, in, norm, right, kBackwards, again).ok());
      EXPECT_TRUE(again == projected) << CpuTargetName(target);
    }
    ForceCpuTarget(before);
  }
}

TEST(AxesTest, TheIdentityChangesNothing) {
  const Bytes weight = Weights(DType::kBF16, Normal(40 * 24, 7));
  Bytes out(weight.size());
  ASSERT_TRUE(ProjectInputs(DType::kBF16, weight, {}, *IdentityAxes(24), kBackwards, out).ok());
  EXPECT_TRUE(out == weight);
  ASSERT_TRUE(ProjectOutputs(DType::kBF16, weight, 24, *IdentityAxes(40), kBackwards, out).ok());
  EXPECT_TRUE(out == weight);
}

}  // namespace
}  // namespace modelstore
