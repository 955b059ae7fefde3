// Products of matrices in one order of sums: every CPU target gives the plain formula's bits.
#include "codec/kernels/ordered_product.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "codec/kernels/cpu_target.h"

namespace modelstore {
namespace {

class OrderedProductTest : public ::testing::TestWithParam<CpuTarget> {
 protected:
  OrderedProductTest() : before_(CurrentCpuTarget()) { ForceCpuTarget(GetParam()); }
  ~OrderedProductTest() override { ForceCpuTarget(before_); }

 private:
  const CpuTarget before_;
};

TEST_P(OrderedProductTest, IsTheSumInOrder) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const auto& [rows, depth, columns] : {std::array<size_t, 3>{1, 1, 16}, {9, 33, 48}, {16, 576, 32}, {3, 0, 16}}) {
    std::vector<float> a(rows * depth), b(depth * columns), out(rows * columns, 0.25f), expected(rows * columns);
    for (float& x : a) x = normal(random);
    for (float& x : b) x = 1e3f * normal(random);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < columns; ++j) {
        volatile float sum = 0.25f;  // nothing is fused or reordered
        for (size_t d = 0; d < depth; ++d) {
          volatile float product = a[i * depth + d] * b[d * columns + j];
          sum = sum + product;
        }
        expected[i * columns + j] = sum;
      }
    }
    // In two pieces of the depth.
    const size_t first = depth / 3;
    CurrentOrderedProduct()(a.data(), depth, rows, first, b.data(), columns, out.data());
    CurrentOrderedProduct()(a.data() + first, depth, rows, depth - first, b.data() + first * columns, columns,
                            out.data());
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0) << rows << " x " << depth;
  }
}

INSTANTIATE_TEST_SUITE_P(OrderedProduct, OrderedProductTest, ::testing::ValuesIn(AvailableCpuTargets()),
                         [](const auto& target) { return std::string(CpuTargetName(target.param)); });

}  // namespace
}  // namespace modelstore
