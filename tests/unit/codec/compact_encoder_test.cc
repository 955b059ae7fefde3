// Compact encoding of deltas: what is stored gives the measured error, and the metric of the moments pays.
#include "codec/encode/compact_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
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

// What the encoder's errors are measured by.
std::vector<float> Damped(std::vector<float> h, uint64_t n) {
  double mean = 0;
  for (uint64_t i = 0; i < n; ++i) mean += static_cast<double>(h[i * n + i]) / static_cast<double>(n);
  for (uint64_t i = 0; i < n; ++i) h[i * n + i] += static_cast<float>(kMomentsDamping * mean);
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

// A finetune in bfloat16 differs from its base by whole ulps: levels that are chosen for what rounding to nearest makes
// of them meet most of these exactly.
TEST(CompactEncoder, MeetsRoundedFinetunesByKnowingTheRounding) {
  constexpr uint64_t kRows = 64, kColumns = 96;
  const std::vector<float> base = Normal(kRows * kColumns, 0.1f, 5), change = Normal(kRows * kColumns, 2e-4f, 6);
  std::vector<uint16_t> patterns(base.size());
  std::vector<float> delta(base.size());
  const auto rounded = [](float x) {
    return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x8000u) & 0xffff0000u);
  };
  for (size_t e = 0; e < base.size(); ++e) {
    const float b = rounded(base[e]);
    patterns[e] = static_cast<uint16_t>(std::bit_cast<uint32_t>(b) >> 16);
    delta[e] = rounded(b + change[e]) - b;
  }
  CompactInput input{kRows, kColumns, delta, nullptr, {}};
  CompactChoice choice;
  choice.rank = 2;
  choice.residual_step = 1;
  choice.scale = 0;
  const auto plain = EncodeTensor(input, choice);
  input.base = patterns;
  const auto knowing = EncodeTensor(input, choice);
  ASSERT_TRUE(plain.ok() && knowing.ok());
  EXPECT_FALSE(plain->segment.nearest);
  ASSERT_TRUE(knowing->segment.nearest);
  const std::vector<double> sums = Rebuild(*knowing);
  double error = 0;
  for (size_t e = 0; e < sums.size(); ++e) {
    const float b = Bf16(patterns[e]);
    const double left = static_cast<double>(b + delta[e] - rounded(b + static_cast<float>(sums[e])));
    error += left * left;
  }
  EXPECT_NEAR(knowing->error / error, 1, 0.01);
  EXPECT_LT(knowing->error, plain->error / 2);
  input.base = input.base.first(3);
  EXPECT_EQ(EncodeTensor(input, choice).status().code(), StatusCode::kInvalidArgument);
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
        const double error = Error(input, *tensor, with_moments ? Damped(h, kColumns) : std::vector<float>());
        EXPECT_LT(tensor->error, tensor->energy);
        EXPECT_NEAR(tensor->error, error, 1e-3 * error) << choice.rank << " " << choice.bits;
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
    EXPECT_LT(Error(with, *a, Damped(h, kColumns)), 0.97 * Error(with, *b, Damped(h, kColumns)));
    EXPECT_LT(a->bytes, 1.3 * b->bytes);
  }
}

TEST(CompactEncoder, ErrorFeedbackLowersTheErrorAtEqualLevels) {
  constexpr uint64_t kRows = 64, kColumns = 130;  // more than two column blocks
  const std::vector<float> delta = Normal(kRows * kColumns, 1, 7), h = Moments(kColumns, 500, 8);
  const auto moments = Prepared(h, kColumns);
  // All levels from one step and no pruning: what differs is the feedback alone.
  CompactChoice choice;
  choice.bits = 3;
  const CompactInput with{kRows, kColumns, delta, moments.get(), {}}, without{kRows, kColumns, delta, nullptr, {}};
  const auto fed = EncodeTensor(with, choice), plain = EncodeTensor(without, choice);
  ASSERT_TRUE(fed.ok() && plain.ok());
  EXPECT_LT(Error(with, *fed, Damped(h, kColumns)), 0.8 * Error(with, *plain, Damped(h, kColumns)));
}

TEST(CompactEncoder, PruningKeepsTheShareAndTheBits) {
  constexpr uint64_t kRows = 96, kColumns = 128;
  const std::vector<float> delta = Normal(kRows * kColumns, 1, 9), h = Moments(kColumns, 500, 10);
  const auto moments = Prepared(h, kColumns);
  for (const bool with_moments : {false, true}) {
    for (const uint32_t bits : {1u, 2u, 3u, 4u, 8u}) {
      for (const uint64_t group : {uint64_t{0}, uint64_t{1024}}) {
        CompactChoice choice;
        choice.bits = bits, choice.sparsity = 0.75f, choice.group_elems = group;
        const auto t = EncodeTensor({kRows, kColumns, delta, with_moments ? moments.get() : nullptr, {}}, choice);
        ASSERT_TRUE(t.ok());
        ASSERT_EQ(t->residual.size(), delta.size());
        const auto zeros = std::count(t->residual.begin(), t->residual.end(), 0);
        EXPECT_NEAR(static_cast<double>(zeros) / static_cast<double>(delta.size()), 0.75, 0.001);
        const auto [least, most] = std::minmax_element(t->residual.begin(), t->residual.end());
        EXPECT_LE(std::max(-*least, int{*most}), std::min(1 << (bits - 1), 127));
        EXPECT_EQ(t->segment.wide_residual, bits > 3);
        EXPECT_EQ(t->segment.biases, (std::array<uint8_t, 3>{32, 32, 32}));
        EXPECT_EQ(t->scales.size(), group == 0 ? 1 : delta.size() / group);
      }
    }
  }
}

TEST(CompactEncoder, EstimatesAreNearWhatEncodingGives) {
  constexpr uint64_t kRows = 400, kColumns = 100;
  std::vector<float> weights(kRows);
  for (size_t i = 0; i < kRows; ++i) weights[i] = 1.0f / static_cast<float>(1 + i);
  const std::vector<float> delta = Delta(kRows, kColumns, 0.2f, 11), h = Moments(kColumns, 400, 12);
  const auto moments = Prepared(h, kColumns);
  std::vector<CompactChoice> ladder(6);
  ladder[1].rank = 2;
  ladder[2].rank = 5, ladder[2].scale = 0;
  ladder[3].residual_step = 2;
  ladder[4].rank = 3, ladder[4].residual_step = 1;
  ladder[5].bits = 2, ladder[5].sparsity = 0.9f;
  for (const bool with_weights : {false, true}) {
    CompactInput input{kRows, kColumns, delta, moments.get(), {}};
    if (with_weights) input.row_weights = weights;
    const auto analysis = AnalyzeTensor(input, ladder);
    ASSERT_TRUE(analysis.ok()) << analysis.status().ToString();
    ASSERT_EQ(analysis->estimates.size(), ladder.size() + 1);
    EXPECT_EQ(analysis->estimates[0].bytes, 0);
    EXPECT_EQ(analysis->estimates[0].error, analysis->energy);
    for (size_t c = 0; c < ladder.size(); ++c) {
      const CompactEstimate& estimate = analysis->estimates[c + 1];
      EXPECT_EQ(estimate.choice, ladder[c]);
      const auto tensor = EncodeTensor(input, ladder[c]);
      ASSERT_TRUE(tensor.ok());
      EXPECT_NEAR(analysis->energy, tensor->energy, 1e-5 * tensor->energy);
      EXPECT_NEAR(estimate.bytes, tensor->bytes, (with_weights ? 0.2 : 0.1) * tensor->bytes) << c << with_weights;
      EXPECT_NEAR(estimate.error, tensor->error, 0.25 * tensor->error) << c << with_weights;
    }
  }
}

TEST(CompactEncoder, RowsOfLittleWeightHaveNoFactors) {
  constexpr uint64_t kRows = 300, kColumns = 40;
  std::vector<float> weights(kRows, 1e-9f);
  for (size_t i = 0; i < kRows; i += 3) weights[i] = 1;
  const std::vector<float> delta = Delta(kRows, kColumns, 0.05f, 13);
  const CompactInput input{kRows, kColumns, delta, nullptr, weights};
  CompactChoice choice;
  choice.rank = 3, choice.factor_step = 0.5f;
  const auto tensor = EncodeTensor(input, choice);
  ASSERT_TRUE(tensor.ok());
  ASSERT_FALSE(tensor->segment.row_mask.empty());
  for (size_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(tensor->segment.row_mask[i / 64] >> (i % 64) & 1, i % 3 == 0 ? 1u : 0u) << i;
  }
  EXPECT_LT(tensor->error, 0.25 * tensor->energy);
  EXPECT_NEAR(tensor->error, Error(input, *tensor, {}), 1e-3 * tensor->error);
}

TEST(CompactEncoder, OddShapesAndEmptyDeltas) {
  for (const auto& [rows, columns] : std::vector<std::pair<uint64_t, uint64_t>>{{1, 1}, {1, 50}, {50, 1}, {2, 3}}) {
    for (const float sigma : {0.0f, 1e-20f, 1e-3f, 1e25f}) {
      const std::vector<float> delta = Normal(rows * columns, sigma, 15);
      const std::vector<float> h = Moments(columns, 20, 16);
      const auto moments = Prepared(h, columns);
      for (const InputMoments* m : {static_cast<const InputMoments*>(nullptr), moments.get()}) {
        std::vector<CompactChoice> ladder(4);
        ladder[0].rank = 64;
        ladder[1].rank = 1, ladder[1].residual_step = 1, ladder[1].scale = 0;
        ladder[2].bits = 2, ladder[2].sparsity = 1;
        ladder[3].bits = 4, ladder[3].sparsity = 0.5f, ladder[3].group_elems = 2;
        const CompactInput input{rows, columns, delta, m, {}};
        ASSERT_TRUE(AnalyzeTensor(input, ladder).ok());
        for (const CompactChoice& choice : ladder) {
          const auto tensor = EncodeTensor(input, choice);
          ASSERT_TRUE(tensor.ok()) << tensor.status().ToString();
          EXPECT_LE(tensor->segment.rank, std::min(rows, columns));
          Rebuild(*tensor);
          EXPECT_TRUE(std::isfinite(tensor->error));
          EXPECT_LE(tensor->error, tensor->energy * 1.01);
        }
      }
    }
  }
}

// However many threads take its panels, and in whatever order.
TEST(CompactEncoder, PanelsInParallelGiveTheSame) {
  constexpr uint64_t kRows = 1700, kColumns = 96;
  const std::vector<float> delta = Delta(kRows, kColumns, 0.02f, 5);
  const auto moments = *InputMoments::Prepare(Moments(kColumns, 400, 6), kColumns);
  const ParallelFor backwards = [](size_t n, const std::function<void(size_t)>& task) {
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = n; i-- > 0;) {
          if (i % 3 == t) task(i);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  const std::vector<uint16_t> base(kRows * kColumns, 0x3f80);
  for (const float step : {0.0f, 1.0f}) {
    const CompactChoice choice{.rank = 4, .residual_step = step, .scale = 0};
    CompactInput input{kRows, kColumns, delta, moments.get(), {}, base};
    const CompactTensor alone = *EncodeTensor(input, choice);
    const CompactAnalysis estimated = *AnalyzeTensor(input, std::span(&choice, 1));
    input.parallel = &backwards;
    const CompactTensor together = *EncodeTensor(input, choice);
    EXPECT_EQ(alone.left, together.left);
    EXPECT_EQ(alone.right, together.right);
    EXPECT_EQ(alone.residual, together.residual);
    EXPECT_EQ(alone.scales, together.scales);
    EXPECT_EQ(alone.error, together.error);
    EXPECT_EQ(estimated.estimates.back().error, AnalyzeTensor(input, std::span(&choice, 1))->estimates.back().error);
  }
}

// A residual of which nothing is left does not make the low rank longer.
TEST(CompactEncoder, AResidualOfZerosIsNone) {
  constexpr uint64_t kRows = 128, kColumns = 64;
  const std::vector<float> delta = Delta(kRows, kColumns, 1e-4f, 7);
  const auto moments = *InputMoments::Prepare(Moments(kColumns, 300, 8), kColumns);
  const CompactInput input{kRows, kColumns, delta, moments.get(), {}, {}};
  CompactChoice choice{.rank = 3, .scale = 0};
  const CompactTensor low_rank = *EncodeTensor(input, choice);
  choice.residual_step = 50;
  const CompactTensor both = *EncodeTensor(input, choice);
  EXPECT_FALSE(both.segment.has_residual);
  EXPECT_EQ(both.scales, low_rank.scales);
  EXPECT_EQ(both.left, low_rank.left);
  EXPECT_EQ(both.error, low_rank.error);
}

TEST(CompactEncoder, RefusesWhatDoesNotFit) {
  const std::vector<float> delta(12, 1.0f), h = {2, 0, 0, 0, 2, 0, 0, 0, 2};
  const auto moments = Prepared(h, 3);
  const auto code = [](const CompactInput& input, const CompactChoice& choice) {
    const StatusCode analyzed = AnalyzeTensor(input, {&choice, 1}).status().code();
    EXPECT_EQ(analyzed, EncodeTensor(input, choice).status().code());
    return analyzed;
  };
  CompactChoice good;
  good.rank = 1;
  EXPECT_EQ(code({4, 3, delta, moments.get(), {}}, good), StatusCode::kOk);
  EXPECT_EQ(code({3, 4, delta, moments.get(), {}}, good), StatusCode::kInvalidArgument);  // moments of 3 inputs
  EXPECT_EQ(code({5, 3, delta, nullptr, {}}, good), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({0, 0, {}, nullptr, {}}, good), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1ull << 63, 2, delta, nullptr, {}}, good), StatusCode::kInvalidArgument);
  const std::vector<float> few(3, 1), negative = {1, 1, 1, -1};
  EXPECT_EQ(code({4, 3, delta, nullptr, few}, good), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({4, 3, delta, nullptr, negative}, good), StatusCode::kInvalidArgument);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -2e30f}) {
    std::vector<float> broken = delta;
    broken[7] = bad;
    EXPECT_EQ(code({4, 3, broken, nullptr, {}}, good), StatusCode::kInvalidArgument);
  }
  std::vector<CompactChoice> bad(7);
  bad[0].rank = 5000;
  bad[1].rank = 1, bad[1].factor_step = 0;
  bad[2].residual_step = -1;
  bad[3].residual_step = std::nanf("");
  bad[4].bits = 9;
  bad[5].bits = 2, bad[5].sparsity = 1.5f;
  bad[6].scale = std::nanf("");
  for (const CompactChoice& choice : bad) {
    EXPECT_EQ(code({4, 3, delta, nullptr, {}}, choice), StatusCode::kInvalidArgument);
  }
}

TEST(CompactEncoder, AllRowsOfNoWeightCostNothing) {
  const std::vector<float> delta(12, 1.0f), weights(4, 0.0f);
  CompactChoice choice;
  choice.rank = 2, choice.residual_step = 1;
  const auto tensor = EncodeTensor({4, 3, delta, nullptr, weights}, choice);
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(tensor->segment.rank, 0u);
  EXPECT_FALSE(tensor->segment.has_residual);
  EXPECT_EQ(tensor->error, 0);
}

TEST(InputMoments, SurvivesSingularMatricesAndDeadInputs) {
  constexpr uint64_t kRows = 30, kColumns = 60;
  const std::vector<float> delta = Normal(kRows * kColumns, 1, 17);
  std::vector<float> h = Moments(kColumns, 5, 18);  // of rank 5
  for (const uint64_t dead : {uint64_t{0}, uint64_t{31}, kColumns - 1}) {
    for (uint64_t j = 0; j < kColumns; ++j) h[dead * kColumns + j] = h[j * kColumns + dead] = 0;
  }
  const auto moments = Prepared(h, kColumns);
  ASSERT_NE(moments, nullptr);
  CompactChoice choice;
  choice.rank = 3, choice.residual_step = 1;
  const auto tensor = EncodeTensor({kRows, kColumns, delta, moments.get(), {}}, choice);
  ASSERT_TRUE(tensor.ok());
  EXPECT_LT(tensor->error, 0.2 * tensor->energy);
}

TEST(InputMoments, RefusesWhatIsNoSecondMoment) {
  const std::vector<float> good = Moments(8, 100, 19);
  EXPECT_TRUE(InputMoments::Prepare(good, 8).ok());
  const auto refused = [](const std::vector<float>& h, uint64_t n, const char* why) {
    const Status status = InputMoments::Prepare(h, n).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(why));
  };
  refused(good, 7, "no matrix");
  refused({}, 0, "no matrix");
  refused(std::vector<float>(64, 0), 8, "all zero");
  std::vector<float> h = good;
  h[3 * 8 + 5] = std::nanf("");
  refused(h, 8, "[5, 3]");
  h = good;
  h[2 * 8 + 2] = -1;
  refused(h, 8, "[2, 2]");
  h = good;
  h[2 * 8 + 2] = std::numeric_limits<float>::infinity();
  refused(h, 8, "[2, 2]");
  h = good;
  h[1] += 1;
  refused(h, 8, "not symmetric at [1, 0]");
  h.assign(64, 1);
  for (size_t i = 0; i < 8; ++i) {
    for (size_t j = 0; j < 8; ++j) h[i * 8 + j] = i == j ? 1.0f : -100.0f;
  }
  refused(h, 8, "not positive");
}

TEST(CompactEncoder, MemoryBoundsGrowWithWhatIsAsked) {
  CompactChoice none, rank, residual;
  rank.rank = 16;
  residual.rank = 16, residual.residual_step = 1;
  const auto bytes = [](const CompactChoice& c) { return CompactMemoryBytes(10000, 1000, true, c); };
  EXPECT_LT(bytes(none), bytes(rank));
  EXPECT_GE(bytes(residual), bytes(rank) + 10000 * 1000);
  EXPECT_LT(bytes(residual), uint64_t{10000} * 1000 * 4);  // less than the delta itself
  EXPECT_GE(InputMoments::MemoryBytes(1000), uint64_t{1000} * 1000 * 12);
}

}  // namespace
}  // namespace modelstore
