// Principal axes: orthonormal, by falling energy, and readers that rebuild what correlates.
#include "codec/encode/principal_axes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace modelstore {
namespace {

constexpr uint64_t kN = 12, kKept = 5;

// A B^T of factors with falling sizes: symmetric, positive.
std::vector<double> Moments(uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> x(kN * kN), c(kN * kN, 0);
  for (uint64_t i = 0; i < kN; ++i) {
    for (uint64_t s = 0; s < kN; ++s) x[i * kN + s] = normal(random) * std::exp(-0.5 * static_cast<double>(s));
  }
  for (uint64_t i = 0; i < kN; ++i) {
    for (uint64_t j = 0; j < kN; ++j) {
      for (uint64_t s = 0; s < kN; ++s) c[i * kN + j] += x[i * kN + s] * x[j * kN + s];
    }
  }
  return c;
}

TEST(PrincipalAxes, AreOrthonormalAndTheLargest) {
  const std::vector<double> c = Moments(1);
  const std::vector<double> q = *PrincipalAxes(c, kN, kKept);
  const std::vector<double> gram = TransposedProduct(q, q, kN, kKept, kKept);
  for (uint64_t i = 0; i < kKept; ++i) {
    for (uint64_t j = 0; j < kKept; ++j) EXPECT_NEAR(gram[i * kKept + j], i == j ? 1 : 0, 1e-12);
  }
  // C q = lambda q, lambda falling.
  double before = std::numeric_limits<double>::infinity();
  for (uint64_t j = 0; j < kKept; ++j) {
    double lambda = 0, off = 0;
    for (uint64_t i = 0; i < kN; ++i) {
      double cq = 0;
      for (uint64_t d = 0; d < kN; ++d) cq += c[i * kN + d] * q[d * kKept + j];
      lambda += cq * q[i * kKept + j];
    }
    for (uint64_t i = 0; i < kN; ++i) {
      double cq = 0;
      for (uint64_t d = 0; d < kN; ++d) cq += c[i * kN + d] * q[d * kKept + j];
      off = std::max(off, std::abs(cq - lambda * q[i * kKept + j]));
    }
    EXPECT_LT(off, 1e-10);
    EXPECT_LE(lambda, before);
    before = lambda;
  }
}

TEST(PrincipalAxes, AReaderOfTheirOwnMomentsIsTheAxes) {
  const std::vector<double> c = Moments(2), q = *PrincipalAxes(c, kN, kKept);
  const std::vector<double> r = *LeastSquaresReader(c, q, kN, kKept);
  for (size_t e = 0; e < q.size(); ++e) EXPECT_NEAR(r[e], q[e], 1e-9);
}

TEST(PrincipalAxes, AReaderOfOtherMomentsLosesLess) {
  const std::vector<double> c = Moments(3), q = *PrincipalAxes(Moments(4), kN, kKept);
  const std::vector<double> r = *LeastSquaresReader(c, q, kN, kKept);
  // tr((I - R Q^T) C (I - R Q^T)^T).
  const auto lost = [&](const std::vector<double>& reader) {
    double sum = 0;
    for (uint64_t i = 0; i < kN; ++i) {
      std::vector<double> row(kN, 0);
      row[i] = 1;
      for (uint64_t j = 0; j < kN; ++j) {
        for (uint64_t m = 0; m < kKept; ++m) row[j] -= reader[i * kKept + m] * q[j * kKept + m];
      }
      for (uint64_t a = 0; a < kN; ++a) {
        for (uint64_t b = 0; b < kN; ++b) sum += row[a] * c[a * kN + b] * row[b];
      }
    }
    return sum;
  };
  EXPECT_LT(lost(r), 0.9 * lost(q));
  std::vector<double> other = r;
  for (size_t e = 0; e < other.size(); e += 3) {
    other[e] += 1e-3;
    EXPECT_GT(lost(other), lost(r));
    other[e] = r[e];
  }
}

TEST(PrincipalAxes, SingularMomentsHaveAxesToo) {
  std::vector<double> c(kN * kN, 0);
  c[0] = 4;
  const std::vector<double> q = *PrincipalAxes(c, kN, kKept);
  EXPECT_NEAR(std::abs(q[0]), 1, 1e-12);
  const std::vector<double> r = *LeastSquaresReader(c, q, kN, kKept);
  for (const double x : r) EXPECT_TRUE(std::isfinite(x) && std::abs(x) < 2);
}

TEST(PrincipalAxes, RefuseWhatIsNoMatrix) {
  std::vector<double> c = Moments(5);
  EXPECT_EQ(PrincipalAxes(c, kN, 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(PrincipalAxes(c, kN, kN + 1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(PrincipalAxes(c, kN + 1, 1).status().code(), StatusCode::kInvalidArgument);
  c[7] = NAN;
  EXPECT_EQ(PrincipalAxes(c, kN, kKept).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(LeastSquaresReader(std::vector<double>(kN * kN, 0), *PrincipalAxes(Moments(6), kN, kKept), kN, kKept)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace modelstore
