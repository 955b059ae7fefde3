// Compact tensors for tests, with the levels that their tokens stand for (layer: tests).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "codec/decode/compact_decoder.h"
#include "codec/kernels/level_tokens.h"
#include "tests/unit/codec/codec_fixture.h"

namespace modelstore::test {

// A compact tensor with its levels as they were before they became tokens.
struct CompactModel {
  Frame frame;
  struct Levels {
    std::vector<int8_t> right, left, residual;
    std::vector<uint16_t> scales, steps;
  };
  std::vector<Levels> levels;
  Bytes base;
  std::vector<uint16_t> factors, residual, scales;  // the three tensors
};

inline uint16_t Bf16(float v) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16); }

inline void AppendTokens(std::vector<int8_t> levels, unsigned group, std::vector<uint16_t>& out) {
  levels.resize((levels.size() + group - 1) / group * group);
  const size_t tokens = levels.size() / group;
  const size_t at = out.size();
  out.resize(at + tokens);
  if (tokens > 0) LevelsToTokens(levels.data(), tokens, group, out.data() + at);
}

inline std::vector<int8_t> RandomLevels(size_t n, int max, double sigma, std::mt19937_64& rng) {
  std::normal_distribution<double> normal(0, sigma);
  std::vector<int8_t> levels(n);
  for (int8_t& level : levels)
    level = static_cast<int8_t>(std::clamp(std::lround(normal(rng)), -static_cast<long>(max), static_cast<long>(max)));
  return levels;
}

// Values of the base's size around 1/16, with every special pattern of the type strewn in.
inline Bytes Base(DType dtype, size_t elems, std::mt19937_64& rng) {
  Bytes base = NormalTensor(dtype, elems, 0.06, static_cast<uint32_t>(rng()));
  const uint32_t width = DTypeBytes(dtype);
  for (size_t i = 0; i < elems; i += 1 + rng() % 40) {
    const uint64_t special = rng() % 5;
    uint64_t pattern = rng();
    if (special == 0) pattern = 0;
    if (special == 1) pattern = uint64_t{1} << (width * 8 - 1);            // -0
    if (special == 2) pattern = NarrowFromF64(dtype, 0x7ff0000000000000);  // infinity, or the largest
    if (special == 3) pattern &= 0xf;                                      // subnormal
    std::memcpy(base.data() + i * width, &pattern, width);
  }
  return base;
}

inline CompactModel MakeModel(DType dtype, std::vector<CompactSegment> segments, uint32_t block_elems, uint32_t seed,
                              float scale = 1e-4f) {
  std::mt19937_64 rng(seed);
  CompactModel m;
  CompactFrame compact;
  compact.seed = static_cast<uint32_t>(rng());
  uint64_t elems = 0;
  for (CompactSegment& s : segments) {
    elems += s.elems();
    CompactModel::Levels l;
    l.right = RandomLevels(s.rank * s.columns, kMaxPairLevel, 3, rng);
    l.left = RandomLevels(s.factor_rows() * s.rank, kMaxPairLevel, 40, rng);
    if (s.has_residual) l.residual = RandomLevels(s.elems(), s.wide_residual ? kMaxPairLevel : kMaxQuadLevel, 1.5, rng);
    std::uniform_real_distribution<float> uniform(-scale, scale);
    for (uint32_t k = 0; k < s.rank; ++k) l.scales.push_back(Bf16(uniform(rng)));
    for (uint64_t g = 0; g < s.groups(); ++g) l.steps.push_back(Bf16(50 * uniform(rng)));
    AppendTokens(l.right, kFactorTokenLevels, m.factors);
    AppendTokens(l.left, kFactorTokenLevels, m.factors);
    AppendTokens(l.residual, s.residual_token_levels(), m.residual);
    m.scales.insert(m.scales.end(), l.scales.begin(), l.scales.end());
    m.scales.insert(m.scales.end(), l.steps.begin(), l.steps.end());
    m.levels.push_back(std::move(l));
  }
  compact.segments = std::move(segments);
  EXPECT_TRUE(compact.FinishLayout(elems).ok());
  EXPECT_EQ(compact.factor_tokens, m.factors.size());
  EXPECT_EQ(compact.residual_tokens, m.residual.size());
  EXPECT_EQ(compact.scales, m.scales.size());
  m.frame.encoding = Encoding::kCompact;
  m.frame.dtype = m.frame.coded_dtype = dtype;
  m.frame.elems = elems;
  m.frame.block_elems = block_elems;
  m.frame.compact = std::make_shared<const CompactFrame>(std::move(compact));
  m.base = Base(dtype, elems, rng);
  return m;
}

inline ByteSpan Part(const std::vector<uint16_t>& all, const CompactPiece::Range& range) {
  return std::as_bytes(std::span(all).subspan(range.begin, range.count));
}

inline CompactInputs InputsOf(const CompactModel& m, const CompactPiece& piece) {
  return {Part(m.factors, piece.right), Part(m.factors, piece.left), Part(m.residual, piece.residual),
          Part(m.scales, piece.scales), Part(m.scales, piece.steps)};
}

inline CompactSegment Plain(uint64_t rows, uint64_t columns, uint32_t rank) {
  CompactSegment s;
  s.rows = rows;
  s.columns = columns;
  s.rank = rank;
  return s;
}

inline CompactSegment WithResidual(CompactSegment s, uint64_t group_elems, bool wide = false) {
  s.has_residual = true;
  s.group_elems = group_elems;
  s.wide_residual = wide;
  s.biases = {11, 5, 2};
  return s;
}

inline CompactSegment Nearest(CompactSegment s) {
  s.nearest = true;
  return s;
}

inline CompactSegment WithMask(CompactSegment s, uint32_t seed, unsigned one_in) {
  std::mt19937_64 rng(seed);
  s.row_mask.assign((s.rows + 63) / 64, 0);
  for (uint64_t row = 0; row < s.rows; ++row)
    if (rng() % one_in == 0) s.row_mask[row / 64] |= uint64_t{1} << (row % 64);
  return s;
}

// Of every kind, none of a size that suits anybody.
inline std::vector<CompactSegment> OddShapes() {
  return {
      Plain(3, 5, 2),
      WithResidual(Plain(17, 33, 7), 10),
      WithMask(Plain(131, 70, 5), 1, 3),
      Plain(1, 1, 0),
      WithResidual(WithMask(Plain(40, 513, 4), 2, 2), 0, true),
      WithResidual(Plain(9, 1030, 0), 1000),
      Plain(2, 1601, 19),
      Nearest(WithResidual(Plain(21, 45, 2), 0)),
      WithMask(Plain(70, 3, 3), 3, 1000),
      Plain(1, 2100, 1),
  };
}

}  // namespace modelstore::test
