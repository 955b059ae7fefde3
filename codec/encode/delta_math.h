// Small numeric helpers of the compact encoder (layer: codec/encode, internal).
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/encode/compact_encoder.h"

namespace modelstore {

// Rows of a tensor that are worked on at once: enough for BLAS, little beside a tensor.
inline constexpr uint64_t kPanelRows = 256;

// The nearest BF16 pattern of a finite float; never rounds a positive number to 0 or a finite one to infinity.
uint16_t ToBf16(float value);
float FromBf16(uint16_t pattern);
// As a segment that is rounded to nearest is: halves away from 0.
inline float RoundToBf16(float value) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x8000u) & 0xffff0000u);
}

// Mean bits a symbol of a histogram times its symbols: entropy-coded size, in bits.
double EntropyBits(std::span<const double> counts);
// The same of levels.
double LevelBits(std::span<const int8_t> levels);

// |e R|^2 of each of `rows` rows (columns wide, one after another) in units of the moments; the identity's without
// moments. `scratch` is kept for the next call.
void RowEnergies(const InputMoments* moments, const float* e, uint64_t rows, uint64_t columns,
                 std::vector<float>& scratch, double* energies);

}  // namespace modelstore
