#include "codec/decode/compact_decoder.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
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
  float* scales = nullptr;           // of the ranks
  float* weights = nullptr;          // scale x left level
  float* sums = nullptr;             // kPanelRows rows, then zeros
  float* strips = nullptr;           // a block of columns of `right`
};

uint64_t LevelsOf(const Range& tokens, unsigned per_token) { return tokens.count * per_token; }

Result<Workspace> Unpack(const CompactPiece& piece, const PieceExtent& extent, const CompactInputs& inputs,
                         CompactScratch& scratch) {
  const CompactSegment& s = *piece.segment;
  const unsigned residual_group = s.residual_token_levels();
  const uint64_t right = LevelsOf(piece.right, kFactorTokenLevels);
  const uint64_t left = LevelsOf(piece.left, kFactorTokenLevels);
  const uint64_t residual = LevelsOf(piece.residual, residual_group);
  const uint64_t factor_rows = piece.right.count == 0 ? 0 : extent.end_factor_row - extent.first_factor_row;
  Fit(scratch.levels, right + left + residual);
  Fit(scratch.floats, kPanelFloats + s.rank * (kPanelColumns + 1 + factor_rows));
  Workspace w;
  w.sums = scratch.floats.data();
  w.strips = w.sums + kPanelFloats;
  w.scales = w.strips + s.rank * kPanelColumns;
  w.weights = w.scales + s.rank;
  std::fill_n(w.sums + kPanelRows * kPanelColumns, kPanelColumns, 0.0f);
  int8_t* at = scratch.levels.data();
  bool ok = TokensToLevels(inputs.right.data(), piece.right.count, kFactorTokenLevels, at);
  w.right = at;
  at += right;
  ok &= TokensToLevels(inputs.left.data(), piece.left.count, kFactorTokenLevels, at);
  w.left = at + extent.first_left_level(s.rank);
  at += left;
  ok &= TokensToLevels(inputs.residual.data(), piece.residual.count, residual_group, at);
  w.residual = at + piece.begin % residual_group;
  if (!ok) return Corruption("compact tensor: a token that stands for no levels");
  if (factor_rows == 0) return w;
  for (uint32_t k = 0; k < s.rank; ++k) w.scales[k] = ScaleAt(inputs.scales, k);
  for (uint64_t row = 0; row < factor_rows; ++row) {
    float* weights = w.weights + row * s.rank;
    const int8_t* levels = w.left + row * s.rank;
    for (uint32_t k = 0; k < s.rank; ++k) weights[k] = w.scales[k] * static_cast<float>(levels[k]);
  }
  return w;
}

// Columns [first, end) of the right factors, in strips; what fills the last strip is 0.
void MakeStrips(const CompactSegment& s, const int8_t* right, uint64_t first, uint64_t end, float* strips) {
  for (uint64_t j = first; j < end; j += kStripColumns) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(kStripColumns, end - j));
    for (uint32_t k = 0; k < s.rank; ++k, strips += kStripColumns) {
      const int8_t* levels = right + k * s.columns + j;
      if (n == kStripColumns) {
        for (size_t i = 0; i < kStripColumns; ++i) strips[i] = static_cast<float>(levels[i]);
      } else {
        for (size_t i = 0; i < kStripColumns; ++i) strips[i] = i < n ? static_cast<float>(levels[i]) : 0.0f;
      }
    }
  }
}

// Adds a piece's residual to sums; keeps what the levels of one group stand for while it lasts.
class ResidualAdder {
 public:
  ResidualAdder(const CompactPiece& piece, const int8_t* levels, ByteSpan steps)
      : kernels_(CurrentCompactKernels()),
        wide_(piece.segment->wide_residual),
        begin_(piece.begin),
        group_elems_(piece.segment->step_elems()),
        first_group_(piece.begin / group_elems_),
        levels_(levels),
        steps_(steps) {
    for (unsigned i = 0; i < biases_.size(); ++i) biases_[i] = static_cast<float>(piece.segment->biases[i]) * kBiasUnit;
  }

  // Elements [begin, begin + n) of the segment.
  void Add(uint64_t begin, uint64_t n, float* sums) {
    while (n > 0) {
      if (begin < group_begin_ || begin - group_begin_ >= group_elems_) SetGroup(begin / group_elems_);
      const uint64_t count = std::min(n, group_elems_ - (begin - group_begin_));
      const int8_t* levels = levels_ + (begin - begin_);
      if (wide_) {
        kernels_.add_wide_residual(levels, count, biases_.data(), step_, sums);
      } else {
        kernels_.add_residual(levels, count, values_.data(), sums);
      }
      begin += count;
      sums += count;
      n -= count;
    }
  }

 private:
  void SetGroup(uint64_t group) {
    group_begin_ = group * group_elems_;
    step_ = ScaleAt(steps_, group - first_group_);
    for (int i = 0; i < kResidualLevels; ++i)
      values_[static_cast<size_t>(i)] =
          ResidualValue(i < kResidualLevels / 2 ? i : i - kResidualLevels, biases_.data(), step_);
  }

  const CompactKernels& kernels_;
  const bool wide_;
  const uint64_t begin_, group_elems_, first_group_;
  const int8_t* const levels_;
  const ByteSpan steps_;
  std::array<float, 3> biases_;
  uint64_t group_begin_ = ~uint64_t{0};  // of the group that the next two are of
  float step_ = 0;
  std::array<float, kResidualLevels> values_;
};

}  // namespace

PieceExtent ExtentOf(const CompactPiece& piece) {
  const CompactSegment& s = *piece.segment;
  PieceExtent e;
  e.first_row = piece.begin / s.columns;
  e.end_row = (piece.begin + piece.elems - 1) / s.columns + 1;
  e.first_factor_row = s.rank == 0 ? 0 : FactorRowsBefore(s, e.first_row);
  e.end_factor_row = s.rank == 0 ? 0 : FactorRowsBefore(s, e.end_row);
  const bool one_row = e.end_row - e.first_row == 1;
  e.first_column = one_row ? piece.begin % s.columns : 0;
  e.end_column = one_row ? e.first_column + piece.elems : s.columns;
  return e;
}

Status CheckInputs(const CompactPiece& piece, const CompactInputs& inputs, bool has_residual) {
  RETURN_IF_ERROR(CheckSize(inputs.right, piece.right, kTokenBytes, "right factors"));
  RETURN_IF_ERROR(CheckSize(inputs.left, piece.left, kTokenBytes, "left factors"));
  if (has_residual) RETURN_IF_ERROR(CheckSize(inputs.residual, piece.residual, kTokenBytes, "residual"));
  RETURN_IF_ERROR(CheckSize(inputs.scales, piece.scales, kScaleBytes, "scales"));
  RETURN_IF_ERROR(CheckSize(inputs.steps, piece.steps, kScaleBytes, "steps"));
  RETURN_IF_ERROR(CheckScales(inputs.scales));
  return CheckScales(inputs.steps);
}

std::vector<CompactPiece> CompactPieces(const Frame& frame, uint32_t index) {
  const std::vector<CompactSegment>& segments = frame.compact->segments;
  const uint64_t begin = frame.BlockBegin(index);
  const uint64_t end = begin + frame.BlockElems(index);
  const auto after = [&](uint64_t elem) {  // the first segment that begins behind it
    return std::upper_bound(segments.begin(), segments.end(), elem,
                            [](uint64_t at, const CompactSegment& segment) { return at < segment.first_elem; });
  };
  const auto last = after(end - 1);
  auto s = after(begin) - 1;
  std::vector<CompactPiece> pieces;
  pieces.reserve(static_cast<size_t>(last - s));
  for (; s != last; ++s) {
    CompactPiece piece;
    piece.segment = &*s;
    piece.begin = std::max(begin, s->first_elem) - s->first_elem;
    piece.elems = std::min(end, s->first_elem + s->elems()) - s->first_elem - piece.begin;
    piece.block_begin = s->first_elem + piece.begin - begin;
    const PieceExtent extent = ExtentOf(piece);
    if (extent.first_factor_row < extent.end_factor_row) {
      piece.right = {s->first_factor_token, s->first_left_token - s->first_factor_token};
      piece.left = TokensOf(s->first_left_token, extent.first_factor_row * s->rank, extent.end_factor_row * s->rank,
                            kFactorTokenLevels);
      piece.scales = {s->first_scale, s->rank};
    }
    if (s->has_residual) {
      const uint64_t piece_end = piece.begin + piece.elems;
      piece.residual = TokensOf(s->first_residual_token, piece.begin, piece_end, s->residual_token_levels());
      const uint64_t group_elems = s->step_elems();
      const uint64_t first_group = piece.begin / group_elems;
      piece.steps = {s->first_scale + s->rank + first_group, (piece_end - 1) / group_elems - first_group + 1};
    }
    pieces.push_back(piece);
  }
  return pieces;
}

uint64_t MaxPieceBytes(const Frame& frame) {
  const std::vector<CompactSegment>& segments = frame.compact->segments;
  // What a block's pieces are worked in keeps its size from one to the next: each part is as large as any piece needs
  // it.
  uint64_t inputs = 0, levels = 0, floats = 0, most_pieces = 0;
  auto oldest = segments.begin();  // whose end may share a block with the segment's first element
  for (const CompactSegment& s : segments) {
    while (s.first_elem - oldest->first_elem >= oldest->elems() + frame.block_elems) ++oldest;
    most_pieces = std::max(most_pieces, static_cast<uint64_t>(&s - &*oldest) + 1);
    const uint64_t elems = std::min<uint64_t>(frame.block_elems, s.elems());
    const uint64_t rows = std::min(s.factor_rows(), elems / s.columns + 2);
    const uint64_t factor_levels = s.rank * (s.columns + rows) + 2 * kFactorTokenLevels;
    const uint64_t residual_levels = s.has_residual ? elems + 2 * kResidualTokenLevels : 0;
    const uint64_t steps = std::min(s.groups(), s.group_elems == 0 ? 1 : elems / s.group_elems + 2);
    inputs = std::max(inputs, factor_levels / kFactorTokenLevels * kTokenBytes +
                                  residual_levels / s.residual_token_levels() * kTokenBytes +
                                  (s.rank + steps) * kScaleBytes);
    levels = std::max(levels, factor_levels + residual_levels);
    floats = std::max(floats, kPanelFloats + s.rank * (kPanelColumns + 1 + rows));
  }
  return inputs + levels + floats * sizeof(float) + most_pieces * sizeof(CompactPiece);
}

Status RebuildPiece(const Frame& frame, const CompactPiece& piece, const CompactInputs& inputs, ByteSpan prediction,
                    CompactScratch& scratch, MutableByteSpan out) {
  const CompactSegment& s = *piece.segment;
  const uint32_t width = DTypeBytes(frame.dtype);
  if (prediction.size() != piece.elems * width || out.size() != piece.elems * width)
    return Internal("RebuildPiece: " + std::to_string(prediction.size()) + " and " + std::to_string(out.size()) +
                    " bytes for " + std::to_string(piece.elems) + " elements");
  RETURN_IF_ERROR(CheckInputs(piece, inputs));
  const PieceExtent extent = ExtentOf(piece);
  ASSIGN_OR_RETURN(const Workspace w, Unpack(piece, extent, inputs, scratch));
  std::optional<ResidualAdder> residual;
  if (s.has_residual) residual.emplace(piece, w.residual, inputs.steps);
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
        if (has_factors && s.has_factors(row)) {
          sums = next_sums;
          next_sums += kPanelColumns;
        } else if (s.has_residual) {
          std::fill_n(sums, kPanelColumns, 0.0f);
        }
        sums += begin - (row * s.columns + column);
        if (residual) residual->Add(begin, end - begin, sums);
        RoundCompact(frame.dtype, prediction.data() + (begin - piece.begin) * width, sums, end - begin,
                     s.first_elem + begin, frame.compact->seed, s.nearest, out.data() + (begin - piece.begin) * width);
      }
    }
  }
  return OkStatus();
}

}  // namespace modelstore
