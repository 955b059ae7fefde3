// The loops that rebuild elements of a compact tensor (layer: codec/kernels). docs/format.md, "Compact tensors".
//
// Every product of the formula is exact in float32 (8 bits of a scale, 7 of each level), so contracting it with the
// addition that follows changes nothing; the additions' order is the format's. One source for every CPU target
// (compact_rebuild_loops.h), the same bits from each. Thread-safe; nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/device_function.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

// Right factors are worked through in blocks of kPanelColumns columns, laid out in strips: level (k, j) of a block lies
// at [(j / kStripColumns * rank + k) * kStripColumns + j % kStripColumns].
inline constexpr size_t kPanelColumns = 256;
inline constexpr size_t kStripColumns = 32;
// Rows that share what is loaded of the right factors.
inline constexpr size_t kPanelRows = 8;

inline constexpr int kResidualLevels = 16;

// What a level of a residual stands for; 0 stands for nothing.
MODELSTORE_DEVICE float ResidualValue(int level, const float* biases, float step) {
  if (level == 0) return 0;
  const int magnitude = level < 0 ? -level : level;
  // Chosen, not indexed: an array that is indexed would leave a GPU's registers.
  const float bias = magnitude == 1 ? biases[0] : magnitude == 2 ? biases[1] : biases[2];
  const float value = (static_cast<float>(magnitude) - bias) * step;
  return level < 0 ? -value : value;
}

// The same in steps, exact: what step times this is.
MODELSTORE_DEVICE float ResidualUnits(int level, const float* biases) { return ResidualValue(level, biases, 1.0f); }

struct CompactKernels {
  // sums[r * kPanelColumns + j] = sum over k, ascending from 0, of weights[r * rank + k] * level(k, j), for r < rows
  // (at most kPanelRows) and j < strips * kStripColumns.
  void (*accumulate)(const float* weights, size_t rows, size_t rank, const float* right, size_t strips, float* sums);
  // sums[i] += values[levels[i] modulo 16]: levels of four bits and what they stand for.
  void (*add_residual)(const int8_t* levels, size_t n, const float* values, float* sums);
  // sums[i] += ResidualValue(levels[i], …).
  void (*add_wide_residual)(const int8_t* levels, size_t n, const float* biases, float step, float* sums);
  // out[i] = prediction[i] + sums[i], rounded by the dither of elements low + i (which does not pass 2^32) under `key`,
  // or to nearest. No alignment, no overlap.
  void (*round_bf16)(const std::byte* prediction, const float* sums, size_t n, uint32_t low, uint32_t key, bool nearest,
                     std::byte* out);
  void (*round_f16)(const std::byte* prediction, const float* sums, size_t n, uint32_t low, uint32_t key, bool nearest,
                    std::byte* out);
};

// Those of the CPU target in force.
const CompactKernels& CurrentCompactKernels();

// prediction[i] + sums[i] in `dtype` (floating-point), rounded by the dither of elements first + i, or to nearest. No
// alignment, no overlap.
void RoundCompact(DType dtype, const std::byte* prediction, const float* sums, size_t n, uint64_t first, uint32_t seed,
                  bool nearest, std::byte* out);

}  // namespace modelstore
