// Histograms of coded values and the symbol tables that fit them (layer: codec/encode). Pure, no threads.
//
// Values are counted in cells. A delta's cells are single values up to 64, then eight an octave; its symbols are found
// by dynamic programming over cell boundaries (at most 8 a context). A self-coded tensor's cells are the upper 12 bits
// of the value; its symbols are the leaves of a pruned binary tree over the cells (at most 64 a class). Tokens, whose
// low ranks carry nearly all, have cells of single ranks there, and symbols by dynamic programming.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "codec/kernels/rans_tables.h"

namespace modelstore {

// --- delta cells
inline constexpr uint32_t kDeltaSingleCells = 65;  // values 0..64
constexpr uint32_t DeltaCellCount(unsigned width_bits) { return kDeltaSingleCells + (width_bits - 6) * 8; }
constexpr uint32_t DeltaCell(uint64_t value) {
  if (value < kDeltaSingleCells) return static_cast<uint32_t>(value);
  const uint64_t u = value - 1;  // >= 64; intervals that follow {0} begin at odd values: 1, 3, 5, 9, 17, …
  const unsigned octave = 63 - static_cast<unsigned>(std::countl_zero(u));
  return kDeltaSingleCells + (octave - 6) * 8 + (static_cast<uint32_t>(u >> (octave - 3)) & 7);
}
// First value of a cell (the inverse on boundaries).
constexpr uint64_t DeltaCellBegin(uint32_t cell) {
  if (cell < kDeltaSingleCells) return cell;
  const uint32_t octave = 6 + (cell - kDeltaSingleCells) / 8;
  return 1 + (uint64_t{8 + (cell - kDeltaSingleCells) % 8} << (octave - 3));
}

// --- self cells
inline constexpr unsigned kSelfCellBits = 12;
constexpr unsigned SelfCellShift(unsigned width_bits) {
  return width_bits > kSelfCellBits ? width_bits - kSelfCellBits : 0;
}
constexpr uint32_t SelfCellCount(unsigned width_bits) { return 1u << (width_bits - SelfCellShift(width_bits)); }

// --- token cells: single ranks, then 256 cells an octave
inline constexpr uint32_t kTokenSingleCells = 1024;
inline constexpr uint32_t kTokenCellCount = kTokenSingleCells + 6 * 256;
constexpr uint32_t TokenCell(uint16_t rank) {
  if (rank < kTokenSingleCells) return rank;
  const unsigned octave = 15 - static_cast<unsigned>(std::countl_zero(rank));
  return kTokenSingleCells + (octave - 10) * 256 + ((rank >> (octave - 8)) & 255);
}
// First rank of a cell; 65,536 for the cell after the last.
constexpr uint32_t TokenCellBegin(uint32_t cell) {
  if (cell < kTokenSingleCells) return cell;
  const uint32_t octave = 10 + (cell - kTokenSingleCells) / 256;
  return (256 + (cell - kTokenSingleCells) % 256) << (octave - 8);
}

// Symbols for one context; empty when nothing was counted. `cells` has DeltaCellCount(width), SelfCellCount(width) or
// kTokenCellCount counts.
RansContext FitDeltaContext(std::span<const uint64_t> cells, unsigned width_bits);
RansContext FitSelfContext(std::span<const uint64_t> cells, unsigned width_bits);
RansContext FitTokenContext(std::span<const uint64_t> cells);

// Bits that the counted values take under these symbols, tables not counted.
double ContextBits(const RansContext& context, std::span<const uint64_t> symbol_counts);
double DeltaContextBits(const RansContext& context, std::span<const uint64_t> cells);
double SelfContextBits(const RansContext& context, std::span<const uint64_t> cells, unsigned width_bits);
double TokenContextBits(const RansContext& context, std::span<const uint64_t> cells);

}  // namespace modelstore
