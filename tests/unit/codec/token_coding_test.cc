// Tensors of tokens: what they cost beside the levels' entropy, and that they come back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "codec/kernels/level_tokens.h"
#include "tests/unit/codec/codec_fixture.h"

namespace modelstore::test {
namespace {

Bytes TokensOf(const std::vector<int8_t>& levels, unsigned group) {
  std::vector<uint16_t> patterns(levels.size() / group);
  LevelsToTokens(levels.data(), patterns.size(), group, patterns.data());
  const auto bytes = std::as_bytes(std::span(patterns));
  return Bytes(bytes.begin(), bytes.end());
}

CodedTensor EncodeTokens(ByteSpan tokens) {
  const uint64_t elems = tokens.size() / 2;
  FrameBuilder builder(TokenPlan(elems, SampleOf(tokens, elems, 2)));
  for (uint32_t i = 0; i < builder.frame().BlockCount(); ++i)
    builder.AddBlock(i, BlockPart(tokens, builder.frame(), i, 2), {});
  Result<BlockEncoder> encoder = std::move(builder).Finish();
  EXPECT_TRUE(encoder.ok()) << encoder.status().ToString();
  CodedTensor coded;
  const Result<Frame> frame = ParseFrame(SerializeFrame(encoder->frame()));
  EXPECT_TRUE(frame.ok()) << frame.status().ToString();
  coded.frame = *frame;
  coded.blocks.resize(coded.frame.BlockCount());
  for (uint32_t i = 0; i < coded.frame.BlockCount(); ++i)
    EXPECT_TRUE(encoder->Encode(i, BlockPart(tokens, coded.frame, i, 2), {}, &coded.blocks[i]).ok());
  return coded;
}

// Of single levels, as they were drawn.
double EntropyBits(const std::vector<int8_t>& levels) {
  std::map<int8_t, double> counts;
  for (const int8_t level : levels) ++counts[level];
  double bits = 0;
  for (const auto& [level, n] : counts) bits -= n * std::log2(n / static_cast<double>(levels.size()));
  return bits;
}

std::vector<int8_t> Normal(size_t n, double sigma, int max, uint32_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal(0, sigma);
  std::vector<int8_t> levels(n);
  for (int8_t& level : levels)
    level = static_cast<int8_t>(std::clamp(std::lround(normal(rng)), -static_cast<long>(max), static_cast<long>(max)));
  return levels;
}

std::vector<int8_t> Ternary(size_t n, double zeros, uint32_t seed) {
  std::mt19937_64 rng(seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<int8_t> levels(n);
  for (int8_t& level : levels) level = static_cast<int8_t>(uniform(rng) < zeros ? 0 : rng() % 2 ? 1 : -1);
  return levels;
}

// Coded bits over the levels' entropy; the tokens come back on every target.
double Overhead(const std::vector<int8_t>& levels, unsigned group) {
  const Bytes tokens = TokensOf(levels, group);
  const CodedTensor coded = EncodeTokens(tokens);
  EXPECT_EQ(coded.frame.encoding, Encoding::kSelf);
  ExpectRoundTrip(coded, tokens);
  return static_cast<double>(coded.bytes()) * 8 / EntropyBits(levels);
}

TEST(TokenCoding, NormalLevelsCostTheirEntropy) {
  EXPECT_LT(Overhead(Normal(1 << 20, 1, kMaxPairLevel, 1), 2), 1.01);
  EXPECT_LT(Overhead(Normal(1 << 20, 2, kMaxPairLevel, 2), 2), 1.01);
  EXPECT_LT(Overhead(Normal(1 << 20, 0.5, kMaxPairLevel, 3), 2), 1.02);
}

TEST(TokenCoding, SparseLevelsCostTheirEntropy) {
  EXPECT_LT(Overhead(Ternary(1 << 21, 0.90, 1), 4), 1.02);
  EXPECT_LT(Overhead(Ternary(1 << 21, 0.95, 2), 4), 1.025);
  EXPECT_LT(Overhead(Ternary(1 << 21, 0.98, 3), 4), 1.03);
}

// Sparse parts beside dense ones: classes of chunks.
TEST(TokenCoding, MixedSparsityCostsItsEntropy) {
  std::vector<int8_t> levels;
  double entropy = 0;
  for (uint32_t part = 0; part < 12; ++part) {
    const std::vector<int8_t> more = part % 2 ? Normal(1 << 17, 1, kMaxQuadLevel, part) : Ternary(1 << 17, 0.97, part);
    entropy += EntropyBits(more);
    levels.insert(levels.end(), more.begin(), more.end());
  }
  const Bytes tokens = TokensOf(levels, 4);
  const CodedTensor coded = EncodeTokens(tokens);
  ExpectRoundTrip(coded, tokens);
  EXPECT_LT(static_cast<double>(coded.bytes()) * 8, entropy * 1.03);
}

// One token that no sample sees, in tensors of every size around the edges.
TEST(TokenCoding, RareTokensStayCodable) {
  for (const size_t n : {1u, 31u, 600u, 8192u, 200'000u}) {
    for (const unsigned group : {2u, 4u}) {
      std::vector<int8_t> levels(n * group, 0);
      levels[levels.size() / 2] = static_cast<int8_t>(group == 2 ? kMaxPairLevel : -kMaxQuadLevel);
      const Bytes tokens = TokensOf(levels, group);
      const CodedTensor coded = EncodeTokens(tokens);
      ExpectRoundTrip(coded, tokens);
      if (n == 200'000) {
        EXPECT_LT(coded.bytes(), 2000u);
      }
    }
  }
}

// Every pattern of 16 bits once, and the same pattern always.
TEST(TokenCoding, AnyPatternsComeBack) {
  Bytes all, same;
  for (uint32_t p = 0; p < 65536; ++p) {
    PutPattern(all, p * 40503 & 0xffff, 2);
    PutPattern(same, 0x8123, 2);
  }
  ExpectRoundTrip(EncodeTokens(all), all);
  const CodedTensor coded = EncodeTokens(same);
  ExpectRoundTrip(coded, same);
  EXPECT_LT(coded.bytes(), 300u);
  EXPECT_EQ(EncodeTokens({}).frame.elems, 0u);
}

}  // namespace
}  // namespace modelstore::test
