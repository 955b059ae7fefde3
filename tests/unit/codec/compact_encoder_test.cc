// Compact encoding of deltas: what is stored gives the measured error, and the metric of the moments pays.
#include "codec/encode/compact_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace modelstore {
namespace {

std::vector<float> Normal(size_t count, float sigma, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> out(count);
  for (float& x : out) x = normal(random);
  return out;
}

// X^T X / samples of inputs whose size falls along the columns and which share a direction.
std::vector<float> Moments(uint64_t n, uint64_t samples, uint32_t seed) {
  const std::vector<float> noise = Normal(samples * n, 1, seed), shared = Normal(samples, 2, seed + 1);
  std::vector<double> sum(n * n, 0);
  std::vector<double> x(n);
  for (uint64_t s = 0; s < samples; ++s) {
    for (uint64_t j = 0; j < n; ++j) {
      const double size = std::exp(-3.0 * static_cast<double>((j * 7) % n) / static_cast<double>(n));
      x[j] = size * static_cast<double>(noise[s * n + j]) + 0.3 * static_cast<double>(shared[s]);
    }
    for (uint64_t i = 0; i < n; ++i) {
      for (uint64_t j = 0; j < n; ++j) sum[i * n + j] += x[i] * x[j];
    }
  }
  std::vector<float> h(n * n);
  for (size_t e = 0; e < h.size(); ++e) h[e] = static_cast<float>(sum[e] / static_cast<double>(samples));
  return h;
}

// A delta of rank 3 plus noise.
std::vector<float> Delta(uint64_t rows, uint64_t columns, float noise, uint32_t seed) {
  std::vector<float> d = Normal(rows * columns, noise, seed);
  for (uint32_t k = 0; k < 3; ++k) {
    const std::vector<float> u = Normal(rows, 1, seed + 10 + k), v = Normal(columns, 0.1f, seed + 20 + k);
    for (uint64_t i = 0; i < rows; ++i) {
      for (uint64_t j = 0; j < columns; ++j) d[i * columns + j] += u[i] * v[j];
    }
  }
  return d;
}

float Bf16(uint16_t pattern) { return std::bit_cast<float>(static_cast<uint32_t>(pattern) << 16); }

// As docs/format.md says, in float64.
std::vector<double> Rebuild(const CompactTensor& t) {
  const CompactSegment& s = t.segment;
  std::vector<double> out(s.rows * s.columns, 0);
  uint64_t factor_row = 0;
  for (uint64_t i = 0; i < s.rows; ++i) {
    const bool has = s.row_mask.empty() || (s.row_mask[i / 64] >> (i % 64) & 1) != 0;
    if (has) {
      for (uint32_t k = 0; k < s.rank; ++k) {
        const double u = static_cast<double>(Bf16(t.scales[k])) * t.left[factor_row * s.rank + k];
        for (uint64_t j = 0; j < s.columns; ++j) out[i * s.columns + j] += u * t.right[k * s.columns + j];
      }
      ++factor_row;
    }
  }
  EXPECT_EQ(t.right.size(), s.rank * s.columns);
  EXPECT_EQ(t.left.size(), factor_row * s.rank);
  EXPECT_EQ(t.residual.size(), s.has_residual ? out.size() : 0);
  for (uint64_t e = 0; e < t.residual.size(); ++e) {
    const int q = t.residual[e], size = std::abs(q);
    EXPECT_LE(size, s.wide_residual ? 127 : 7);
    if (q == 0) continue;
    const double step = static_cast<double>(Bf16(t.scales[s.rank + (s.group_elems == 0 ? 0 : e / s.group_elems)]));
    out[e] += (q < 0 ? -1 : 1) * (size - s.biases[static_cast<size_t>(std::min(size, 3) - 1)] / 64.0) * step;
  }
  return out;
}

// tr(W E H E^T), `h` empty: the identity.
double Error(const CompactInput& input, const CompactTensor& t, const std::vector<float>& h) {
  std::vector<double> e = Rebuild(t);
  double error = 0;
  for (uint64_t i = 0; i < input.rows; ++i) {
    double row = 0;
    for (uint64_t j = 0; j < input.columns; ++j) {
      e[i * input.columns + j] -= static_cast<double>(input.delta[i * input.columns + j]);
    }
    for (uint64_t j = 0; j < input.columns; ++j) {
      const double a = e[i * input.columns + j];
      if (h.empty()) row += a * a;
      for (uint64_t k = 0; k < (h.empty() ? 0 : input.columns); ++k) {
        row += a * static_cast<double>(h[j * input.columns + k]) * e[i * input.columns + k];
      }
    }
    error += row * (input.row_weights.empty() ? 1.0 : static_cast<double>(input.row_weights[i]));
  }
  return error;
}

std::shared_ptr<const InputMoments> Prepared(const std::vector<float>& h, uint64_t n) {
  auto made = InputMoments::Prepare(h, n);
  EXPECT_TRUE(made.ok()) << made.status().ToString();
  return made.ok() ? *made : nullptr;
}

TEST(CompactEncoder, MeasuresTheErrorOfWhatIsStored) {
  constexpr uint64_t kRows = 90, kColumns = 70;
  const std::vector<float> delta = Delta(kRows, kColumns, 0.05f, 1), h = Moments(kColumns, 300, 2);
  std::vector<float> weights(kRows);
  for (size_t i = 0; i < kRows; ++i) weights[i] = std::exp(-static_cast<float>(i % 9));
  const auto moments = Prepared(h, kColumns);
  for (const bool with_moments : {false, true}) {
    for (const bool with_weights : {false, true}) {
      CompactInput input{kRows, kColumns, delta, with_moments ? moments.get() : nullptr, {}};
      if (with_weights) input.row_weights = weights;
      std::vector<CompactChoice> choices(5);
      choices[0].rank = 4;
      choices[1].residual_step = 1.5f;
      choices[2].rank = 3, choices[2].residual_step = 1, choices[2].scale = 1.1f;
      choices[3].bits = 2, choices[3].sparsity = 0.8f, choices[3].group_elems = 256;
      choices[4].bits = 5, choices[4].sparsity = 0.5f;
      for (const CompactChoice& choice : choices) {
        const auto tensor = EncodeTensor(input, choice);
        ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
        const double error = Error(input, *tensor, with_moments ? h : std::vector<float>());
        EXPECT_LT(tensor->error, tensor->energy);
        // The encoder's metric is damped by 1 % of the mean diagonal: a little more than the true one.
        EXPECT_NEAR(tensor->error, error, (with_moments ? 0.2 : 1e-4) * error) << choice.rank << " " << choice.bits;
        EXPECT_GE(DriftFromCode(tensor->segment.drift_code), tensor->error / tensor->energy);
      }
    }
  }
}

TEST(CompactEncoder, AFactorOfEachComponentIsEnoughForALowRankDelta) {
  constexpr uint64_t kRows = 120, kColumns = 80;
  const std::vector<float> delta = Delta(kRows, kColumns, 0, 3);
  CompactChoice choice;
  choice.rank = 3, choice.factor_step = 0.05f;
  const auto tensor = EncodeTensor({kRows, kColumns, delta, nullptr, {}}, choice);
  ASSERT_TRUE(tensor.ok());
  EXPECT_LT(tensor->error, 1e-3 * tensor->energy);
  choice.rank = 10;
  const auto wider = EncodeTensor({kRows, kColumns, delta, nullptr, {}}, choice);
  ASSERT_TRUE(wider.ok());
  EXPECT_EQ(wider->segment.rank, 3u);  // what is noise of the arithmetic is no component
}

TEST(CompactEncoder, TheMomentsMetricPays) {
  constexpr uint64_t kRows = 100, kColumns = 96;
  const std::vector<float> delta = Delta(kRows, kColumns, 0.1f, 5), h = Moments(kColumns, 400, 6);
  const auto moments = Prepared(h, kColumns);
  const CompactInput with{kRows, kColumns, delta, moments.get(), {}}, without{kRows, kColumns, delta, nullptr, {}};
  CompactChoice low_rank, residual, pruned;
  low_rank.rank = 4;
  residual.residual_step = 2;
  pruned.bits = 2, pruned.sparsity = 0.9f;
  for (const CompactChoice& choice : {low_rank, residual, pruned}) {
    const auto a = EncodeTensor(with, choice), b = EncodeTensor(without, choice);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_LT(Error(with, *a, h), 0.95 * Error(with, *b, h));
    EXPECT_LT(a->bytes, 1.3 * b->bytes);
  }
}

}  // namespace
}  // namespace modelstore
