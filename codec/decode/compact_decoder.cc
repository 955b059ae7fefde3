#include "codec/decode/compact_decoder.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "codec/kernels/compact_rebuild.h"
#include "codec/kernels/level_tokens.h"

namespace modelstore {
namespace {

constexpr uint32_t kTokenBytes = 2;
constexpr uint32_t kScaleBytes = 2;
constexpr size_t kPanelFloats = (kPanelRows + 1) * kPanelColumns;  // and a row of zeros
// Scales and steps stay below 2^64, so that no sum of the formula overflows.
constexpr uint16_t kScaleLimit = (127 + 64) << 7;

using Range = CompactPiece::Range;

// Tokens that hold levels [begin, end), counted from `first`.
Range TokensOf(uint64_t first, uint64_t begin, uint64_t end, unsigned per_token) {
  if (begin == end) return {};
  return {first + begin / per_token, (end - 1) / per_token - begin / per_token + 1};
}

// Rows with factors before `row`.
uint64_t FactorRowsBefore(const CompactSegment& s, uint64_t row) {
  if (s.row_mask.empty()) return row;
  if (row == s.rows) return s.factor_rows();
  const uint64_t below = s.row_mask[row / 64] & ((uint64_t{1} << (row % 64)) - 1);
  return s.rows_before[row / 64] + static_cast<uint64_t>(std::popcount(below));
}

bool HasFactors(const CompactSegment& s, uint64_t row) {
  return s.row_mask.empty() || (s.row_mask[row / 64] >> (row % 64) & 1) != 0;
}

// Rows that the piece touches, those of them that have factors, and columns.
struct Extent {
  uint64_t first_row, end_row;
  uint64_t first_factor_row, end_factor_row;
  uint64_t first_column, end_column;  // of all rows together
};

Extent ExtentOf(const CompactPiece& piece) {
  const CompactSegment& s = *piece.segment;
  Extent e;
  e.first_row = piece.begin / s.columns;
  e.end_row = (piece.begin + piece.elems - 1) / s.columns + 1;
  e.first_factor_row = s.rank == 0 ? 0 : FactorRowsBefore(s, e.first_row);
  e.end_factor_row = s.rank == 0 ? 0 : FactorRowsBefore(s, e.end_row);
  const bool one_row = e.end_row - e.first_row == 1;
  e.first_column = one_row ? piece.begin % s.columns : 0;
  e.end_column = one_row ? e.first_column + piece.elems : s.columns;
  return e;
}

Status CheckSize(ByteSpan bytes, const Range& range, uint32_t width, const char* what) {
  if (bytes.size() == range.count * width) return OkStatus();
  return Corruption("compact tensor: " + std::to_string(bytes.size()) + " bytes of " + what + " instead of " +
                    std::to_string(range.count * width));
}

uint16_t ScalePattern(ByteSpan scales, uint64_t index) {
  uint16_t pattern;
  std::memcpy(&pattern, scales.data() + index * kScaleBytes, kScaleBytes);
  return pattern;
}
float ScaleAt(ByteSpan scales, uint64_t index) {
  return std::bit_cast<float>(uint32_t{ScalePattern(scales, index)} << 16);
}

Status CheckScales(ByteSpan scales) {
  for (uint64_t i = 0; i < scales.size() / kScaleBytes; ++i) {
    if ((ScalePattern(scales, i) & 0x7fff) >= kScaleLimit)
      return Corruption("compact tensor: a scale that is not finite or not below 2^64");
  }
  return OkStatus();
}

// Exactly as much memory as asked for.
template <typename T>
void Fit(std::vector<T>& v, size_t n) {
  if (v.capacity() < n) {
    v = {};
    v.reserve(n);
  }
  v.resize(n);
}

// Where RebuildPiece keeps what, in its scratch.
struct Workspace {
  const int8_t* right = nullptr;     // levels, rank x columns
  const int8_t* left = nullptr;      // levels of the touched rows with factors
  const int8_t* residual = nullptr;  // levels of the piece
  int8_t* strips = nullptr;          // a block of columns of `right`
  float* weights = nullptr;          // scale x left level
  float* sums = nullptr;             // kPanelRows rows, then zeros
};

uint64_t LevelsOf(const Range& tokens, unsigned per_token) { return tokens.count * per_token; }

Result<Workspace> Unpack(const CompactPiece& piece, const Extent& extent, const CompactInputs& inputs,
                         CompactScratch& scratch) {
  const CompactSegment& s = *piece.segment;
  const unsigned residual_group = s.residual_token_levels();
  const uint64_t right = LevelsOf(piece.right, kFactorTokenLevels);
  const uint64_t left = LevelsOf(piece.left, kFactorTokenLevels);
  const uint64_t residual = LevelsOf(piece.residual, residual_group);
  const uint64_t factor_rows = piece.right.count == 0 ? 0 : extent.end_factor_row - extent.first_factor_row;
  Fit(scratch.levels, right + left + residual + s.rank * kPanelColumns);
  Fit(scratch.floats, kPanelFloats + factor_rows * s.rank);
  Workspace w;
  w.sums = scratch.floats.data();
  w.weights = w.sums + kPanelFloats;
  std::fill_n(w.sums + kPanelRows * kPanelColumns, kPanelColumns, 0.0f);
  int8_t* at = scratch.levels.data();
  bool ok = TokensToLevels(inputs.right.data(), piece.right.count, kFactorTokenLevels, at);
  w.right = at;
  at += right;
  ok &= TokensToLevels(inputs.left.data(), piece.left.count, kFactorTokenLevels, at);
  w.left = at + extent.first_factor_row * s.rank % kFactorTokenLevels;
  at += left;
  ok &= TokensToLevels(inputs.residual.data(), piece.residual.count, residual_group, at);
  w.residual = at + piece.begin % residual_group;
  w.strips = at + residual;
  if (!ok) return Corruption("compact tensor: a token that stands for no levels");
  for (uint64_t row = 0; row < factor_rows; ++row)
    for (uint32_t k = 0; k < s.rank; ++k)
      w.weights[row * s.rank + k] = ScaleAt(inputs.scales, k) * static_cast<float>(w.left[row * s.rank + k]);
  return w;
}

// Columns [first, end) of the right factors, in strips; what fills the last strip is 0.
void MakeStrips(const CompactSegment& s, const int8_t* right, uint64_t first, uint64_t end, int8_t* strips) {
  for (uint64_t j = first; j < end; j += kStripColumns) {
    const uint64_t n = std::min<uint64_t>(kStripColumns, end - j);
    for (uint32_t k = 0; k < s.rank; ++k, strips += kStripColumns) {
      std::memcpy(strips, right + k * s.columns + j, n);
      std::memset(strips + n, 0, kStripColumns - n);
    }
  }
}

// Adds the residual of elements [begin, begin + n) of the segment to their sums.
void AddResidual(const CompactPiece& piece, const Workspace& w, ByteSpan steps, uint64_t begin, uint64_t n,
                 float* sums) {
  const CompactSegment& s = *piece.segment;
  std::array<float, 3> biases;
  for (unsigned i = 0; i < biases.size(); ++i) biases[i] = static_cast<float>(s.biases[i]) * kBiasUnit;
  const uint64_t group_elems = s.group_elems == 0 ? s.elems() : s.group_elems;
  const uint64_t first_group = piece.begin / group_elems;
  while (n > 0) {
    const uint64_t group = begin / group_elems;
    const uint64_t count = std::min(n, group_elems - begin % group_elems);
    CurrentCompactKernels().add_residual(w.residual + (begin - piece.begin), count, biases.data(),
                                         ScaleAt(steps, group - first_group), sums);
    begin += count;
    sums += count;
    n -= count;
  }
}

}  // namespace

std::vector<CompactPiece> CompactPieces(const Frame& frame, uint32_t index) {
  const std::vector<CompactSegment>& segments = frame.compact->segments;
  const uint64_t begin = frame.BlockBegin(index);
  const uint64_t end = begin + frame.BlockElems(index);
  std::vector<CompactPiece> pieces;
  auto s = std::upper_bound(segments.begin(), segments.end(), begin,
                            [](uint64_t at, const CompactSegment& segment) { return at < segment.first_elem; });
  for (--s; s != segments.end() && s->first_elem < end; ++s) {
    CompactPiece piece;
    piece.segment = &*s;
    piece.begin = std::max(begin, s->first_elem) - s->first_elem;
    piece.elems = std::min(end, s->first_elem + s->elems()) - s->first_elem - piece.begin;
    piece.block_begin = s->first_elem + piece.begin - begin;
    const Extent extent = ExtentOf(piece);
    if (extent.first_factor_row < extent.end_factor_row) {
      piece.right = {s->first_factor_token, s->first_left_token - s->first_factor_token};
      piece.left = TokensOf(s->first_left_token, extent.first_factor_row * s->rank, extent.end_factor_row * s->rank,
                            kFactorTokenLevels);
      piece.scales = {s->first_scale, s->rank};
    }
    if (s->has_residual) {
      const uint64_t last = piece.begin + piece.elems;
      piece.residual = TokensOf(s->first_residual_token, piece.begin, last, s->residual_token_levels());
      const uint64_t group_elems = s->group_elems == 0 ? s->elems() : s->group_elems;
      const uint64_t first_group = piece.begin / group_elems;
      piece.steps = {s->first_scale + s->rank + first_group, (last - 1) / group_elems - first_group + 1};
    }
    pieces.push_back(piece);
  }
  return pieces;
}

uint64_t MaxPieceBytes(const Frame& frame) {
  uint64_t most = 0;
  for (const CompactSegment& s : frame.compact->segments) {
    const uint64_t elems = std::min<uint64_t>(frame.block_elems, s.elems());
    const uint64_t rows = std::min(s.factor_rows(), elems / s.columns + 2);
    const uint64_t factor_levels = s.rank * (s.columns + rows) + 2 * kFactorTokenLevels;
    const uint64_t residual_levels = s.has_residual ? elems + 2 * kResidualTokenLevels : 0;
    const uint64_t steps = std::min(s.groups(), s.group_elems == 0 ? 1 : elems / s.group_elems + 2);
    const uint64_t inputs = factor_levels / kFactorTokenLevels * kTokenBytes +
                            residual_levels / s.residual_token_levels() * kTokenBytes + (s.rank + steps) * kScaleBytes;
    const uint64_t scratch =
        factor_levels + residual_levels + s.rank * kPanelColumns + sizeof(float) * (kPanelFloats + rows * s.rank);
    most = std::max(most, inputs + scratch);
  }
  return most;
}

Status RebuildPiece(const Frame& frame, const CompactPiece& piece, const CompactInputs& inputs, ByteSpan prediction,
                    CompactScratch& scratch, MutableByteSpan out) {
  const CompactSegment& s = *piece.segment;
  const uint32_t width = DTypeBytes(frame.dtype);
  if (prediction.size() != piece.elems * width || out.size() != piece.elems * width)
    return Internal("RebuildPiece: " + std::to_string(prediction.size()) + " and " + std::to_string(out.size()) +
                    " bytes for " + std::to_string(piece.elems) + " elements");
  RETURN_IF_ERROR(CheckSize(inputs.right, piece.right, kTokenBytes, "right factors"));
  RETURN_IF_ERROR(CheckSize(inputs.left, piece.left, kTokenBytes, "left factors"));
  RETURN_IF_ERROR(CheckSize(inputs.residual, piece.residual, kTokenBytes, "residual"));
  RETURN_IF_ERROR(CheckSize(inputs.scales, piece.scales, kScaleBytes, "scales"));
  RETURN_IF_ERROR(CheckSize(inputs.steps, piece.steps, kScaleBytes, "steps"));
  RETURN_IF_ERROR(CheckScales(inputs.scales));
  RETURN_IF_ERROR(CheckScales(inputs.steps));
  const Extent extent = ExtentOf(piece);
  ASSIGN_OR_RETURN(const Workspace w, Unpack(piece, extent, inputs, scratch));
  const bool has_factors = piece.right.count != 0;
  const uint64_t piece_end = piece.begin + piece.elems;

  for (uint64_t column = extent.first_column; column < extent.end_column; column += kPanelColumns) {
    const uint64_t end_column = std::min(column + kPanelColumns, extent.end_column);
    if (has_factors) MakeStrips(s, w.right, column, end_column, w.strips);
    const size_t strips = (end_column - column + kStripColumns - 1) / kStripColumns;
    // The first and the last row may have nothing in these columns.
    uint64_t row = extent.first_row, end_row = extent.end_row;
    if (row * s.columns + end_column <= piece.begin) ++row;
    if ((end_row - 1) * s.columns + column >= piece_end) --end_row;
    uint64_t factor_row = has_factors ? FactorRowsBefore(s, row) - extent.first_factor_row : 0;
    while (row < end_row) {
      const uint64_t panel_end = std::min(row + kPanelRows, end_row);
      uint64_t with_factors = 0;
      if (has_factors) with_factors = FactorRowsBefore(s, panel_end) - extent.first_factor_row - factor_row;
      if (with_factors > 0) {
        CurrentCompactKernels().accumulate(w.weights + factor_row * s.rank, with_factors, s.rank, w.strips, strips,
                                           w.sums);
      }
      factor_row += with_factors;
      float* next_sums = w.sums;
      for (; row < panel_end; ++row) {
        const uint64_t begin = std::max(row * s.columns + column, piece.begin);
        const uint64_t end = std::min(row * s.columns + end_column, piece_end);
        float* sums = w.sums + kPanelRows * kPanelColumns;
        if (has_factors && HasFactors(s, row)) {
          sums = next_sums;
          next_sums += kPanelColumns;
        } else if (s.has_residual) {
          std::fill_n(sums, kPanelColumns, 0.0f);
        }
        sums += begin - (row * s.columns + column);
        if (s.has_residual) AddResidual(piece, w, inputs.steps, begin, end - begin, sums);
        RoundCompact(frame.dtype, prediction.data() + (begin - piece.begin) * width, sums, end - begin,
                     s.first_elem + begin, frame.compact->seed, out.data() + (begin - piece.begin) * width);
      }
    }
  }
  return OkStatus();
}

}  // namespace modelstore
