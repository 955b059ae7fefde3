// Small numeric helpers of the compact encoder (layer: codec/encode, internal).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "codec/encode/compact_encoder.h"

namespace modelstore {

// Rows of a tensor that are worked on at once: enough for BLAS, little beside a tensor.
inline constexpr uint64_t kPanelRows = 128;
inline uint64_t PanelRows(uint64_t columns) {
  constexpr uint64_t kPanelElems = 64 << 10, kLeast = 32;
  return std::clamp(kPanelElems / columns / kLeast * kLeast, kLeast, kPanelRows);
}

// Calls visit(panel, first row, rows) for the panels of `rows`; by input.parallel up to kPanelsAtOnce at once.
inline constexpr uint64_t kPanelsAtOnce = 8;
void ForEachPanel(const CompactInput& input, uint64_t rows,
                  const std::function<void(size_t panel, uint64_t first, uint64_t count)>& visit);
inline uint64_t PanelCount(uint64_t rows, uint64_t columns) {
  return (rows + PanelRows(columns) - 1) / PanelRows(columns);
}

// The nearest BF16 pattern of a finite float; never rounds a positive number to 0 or a finite one to infinity.
uint16_t ToBf16(float value);
float FromBf16(uint16_t pattern);

// Mean bits a symbol of a histogram times its symbols: entropy-coded size, in bits.
double EntropyBits(std::span<const double> counts);
// The same of levels.
double LevelBits(std::span<const int8_t> levels);

// Products with the triangular root are made of blocks of it: BLIS multiplies these four times as fast as triangles.
inline constexpr int64_t kRootBlock = 192;

// |e R|^2 of each of `rows` rows (columns wide, one after another) in units of the moments; the identity's without
// moments. `scratch` is kept for the next call.
void RowEnergies(const InputMoments* moments, const float* e, uint64_t rows, uint64_t columns,
                 std::vector<float>& scratch, double* energies);

}  // namespace modelstore
