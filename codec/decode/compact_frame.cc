#include "codec/decode/compact_frame.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

namespace modelstore {
namespace {

constexpr uint8_t kFlagRowMask = 1;
constexpr uint8_t kFlagResidual = 2;
constexpr uint8_t kFlagWide = 4;
constexpr uint8_t kFlagNearest = 8;
constexpr size_t kLeastSegmentBytes = 5;

Status BadSegment(size_t index, const std::string& what) {
  return Corruption("compact frame: segment " + std::to_string(index) + ": " + what);
}

// Adds `count` to *total; false when that overflows.
bool Add(uint64_t count, uint64_t* total) { return !__builtin_add_overflow(*total, count, total); }

uint64_t TokensFor(uint64_t levels, unsigned per_token) { return levels / per_token + (levels % per_token != 0); }

uint64_t MaskBytes(uint64_t rows) { return rows / 8 + (rows % 8 != 0); }

// The mask as words; empty when `in` is too short. Fails on padding that is not 0.
std::vector<uint64_t> ParseMask(ByteReader& in, uint64_t rows) {
  const ByteSpan bytes = in.Take(MaskBytes(rows));
  std::vector<uint64_t> words((bytes.size() + 7) / 8);
  for (size_t i = 0; i < bytes.size(); ++i) words[i / 8] |= std::to_integer<uint64_t>(bytes[i]) << (i % 8 * 8);
  if (!words.empty() && rows % 64 != 0 && words.back() >> (rows % 64) != 0) in.Fail();
  return words;
}

CompactSegment ParseSegment(ByteReader& in) {
  CompactSegment s;
  s.rows = in.Varint();
  s.columns = in.Varint();
  const uint64_t rank = in.Varint();
  if (rank > kMaxCompactRank) in.Fail();
  s.rank = static_cast<uint32_t>(rank);
  const uint8_t flags = in.U8();
  s.has_residual = (flags & kFlagResidual) != 0;
  s.wide_residual = (flags & kFlagWide) != 0;
  s.nearest = (flags & kFlagNearest) != 0;
  if (flags > (kFlagRowMask | kFlagResidual | kFlagWide | kFlagNearest)) in.Fail();
  if (flags & kFlagRowMask) s.row_mask = ParseMask(in, s.rows);
  if (s.has_residual) {
    s.group_elems = in.Varint();
    for (uint8_t& bias : s.biases) bias = in.U8();
  }
  s.drift_code = in.U8();
  return s;
}

}  // namespace

uint64_t CompactSegment::factor_rows() const {
  if (row_mask.empty()) return rows;
  uint64_t n = 0;
  for (const uint64_t word : row_mask) n += static_cast<uint64_t>(std::popcount(word));
  return n;
}

uint64_t CompactSegment::groups() const {
  if (!has_residual) return 0;
  return group_elems == 0 ? 1 : (elems() - 1) / group_elems + 1;
}

Status CompactFrame::FinishLayout(uint64_t elems) {
  factor_tokens = residual_tokens = scales = 0;
  if (segments.size() > kMaxCompactSegments)
    return Corruption("compact frame: " + std::to_string(segments.size()) + " segments; at most " +
                      std::to_string(kMaxCompactSegments) + " are possible");
  uint64_t first_elem = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    CompactSegment& s = segments[i];
    uint64_t count = 0;
    if (s.rows == 0 || s.columns == 0 || __builtin_mul_overflow(s.rows, s.columns, &count) ||
        count > elems - first_elem) {
      return BadSegment(i, "its " + std::to_string(s.rows) + " x " + std::to_string(s.columns) +
                               " elements exceed the " + std::to_string(elems - first_elem) + " that are left");
    }
    const uint64_t right_levels = uint64_t{s.rank} * std::min(s.columns, kMaxRightFactorLevels + 1);
    if (s.rank > kMaxCompactRank || right_levels > kMaxRightFactorLevels)
      return BadSegment(
          i, "rank " + std::to_string(s.rank) + " at " + std::to_string(s.columns) + " columns is too large");
    if (s.wide_residual && !s.has_residual) return BadSegment(i, "a wide residual that it does not have");
    const bool padded = s.rows % 64 == 0 || s.row_mask.empty() || s.row_mask.back() >> (s.rows % 64) == 0;
    if (!s.row_mask.empty() && (s.row_mask.size() != s.rows / 64 + (s.rows % 64 != 0) || !padded))
      return BadSegment(i, "a row mask that does not fit its " + std::to_string(s.rows) + " rows");
    s.first_elem = first_elem;
    first_elem += count;
    s.rows_before.clear();
    s.rows_before.reserve(s.row_mask.size());
    uint64_t before = 0;
    for (const uint64_t word : s.row_mask) {
      s.rows_before.push_back(before);
      before += static_cast<uint64_t>(std::popcount(word));
    }
    s.first_factor_token = factor_tokens;
    s.first_residual_token = residual_tokens;
    s.first_scale = scales;
    uint64_t left_levels = 0;
    bool fits = !__builtin_mul_overflow(s.factor_rows(), uint64_t{s.rank}, &left_levels);
    fits = fits && Add(TokensFor(right_levels, kFactorTokenLevels), &factor_tokens);
    s.first_left_token = factor_tokens;
    fits = fits && Add(TokensFor(left_levels, kFactorTokenLevels), &factor_tokens);
    fits = fits && Add(s.has_residual ? TokensFor(count, s.residual_token_levels()) : 0, &residual_tokens);
    fits = fits && Add(s.rank, &scales) && Add(s.groups(), &scales);
    if (!fits) return BadSegment(i, "its parts are too large");
  }
  if (first_elem != elems)
    return Corruption("compact frame: segments of " + std::to_string(first_elem) + " elements for a tensor of " +
                      std::to_string(elems));
  return OkStatus();
}

uint8_t DriftCode(double drift) {
  if (!(drift > 0)) return 0;
  for (unsigned code = 1; code < 255; ++code)
    if (DriftFromCode(static_cast<uint8_t>(code)) >= drift) return static_cast<uint8_t>(code);
  return 255;
}

double DriftFromCode(uint8_t code) { return code == 0 ? 0 : std::exp2((static_cast<int>(code) - 224) / 8.0); }

void SerializeCompact(const CompactFrame& frame, ByteWriter& out) {
  out.U32(frame.seed);
  out.Varint(frame.segments.size());
  for (const CompactSegment& s : frame.segments) {
    out.Varint(s.rows);
    out.Varint(s.columns);
    out.Varint(s.rank);
    out.U8(static_cast<uint8_t>((s.row_mask.empty() ? 0 : kFlagRowMask) | (s.has_residual ? kFlagResidual : 0) |
                                (s.wide_residual ? kFlagWide : 0) | (s.nearest ? kFlagNearest : 0)));
    if (!s.row_mask.empty()) out.Append(std::as_bytes(std::span(s.row_mask)).first(MaskBytes(s.rows)));
    if (s.has_residual) {
      out.Varint(s.group_elems);
      for (const uint8_t bias : s.biases) out.U8(bias);
    }
    out.U8(s.drift_code);
  }
}

Result<CompactFrame> ParseCompact(ByteReader& in, uint64_t elems) {
  CompactFrame frame;
  frame.seed = in.U32();
  const uint64_t count = in.Varint();
  if (!in.ok() || count > in.remaining() / kLeastSegmentBytes || count > kMaxCompactSegments)
    return Corruption("compact frame: " + std::to_string(count) + " segments in " + std::to_string(in.remaining()) +
                      " bytes");
  frame.segments.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    frame.segments.push_back(ParseSegment(in));
    if (!in.ok()) return BadSegment(i, "it is cut short or exceeds what is possible");
  }
  RETURN_IF_ERROR(frame.FinishLayout(elems));
  return frame;
}

}  // namespace modelstore
