// Quantizing the residual of a compact tensor column by column, with error feedback (layer: codec/kernels; encoding).
//
// OBS as in GPTQ, in the form of H's upper factor R (H = R R^T): the target of column j moves by the sum over i < j of
// error_i R_ij / R_jj, and what is then left of it costs R_jj^2 times its square, which nothing later makes good. Each
// element takes the level of least cost x error^2 + price of its bits. Rows lie side by side in a vector, so that all
// of them take a column's step at once. Thread-safe; nothing allocates; the same bits from every CPU target.
#pragma once

#include <cstddef>
#include <cstdint>

namespace modelstore {

inline constexpr size_t kSweepRows = 16;     // of a tile
inline constexpr size_t kSweepColumns = 64;  // at most
inline constexpr int kSweepLevels = 8;       // magnitudes 0 to 7

// What levels stand for and cost. `values` in steps, ascending from 0; `bit_costs` on the scale of an error of one step
// in an element of cost 1.
struct SweepLevels {
  float step = 0;  // > 0
  float values[kSweepLevels] = {};
  float bit_costs[kSweepLevels] = {};
};

// kSweepRows rows of some columns: element (r, c) of each array lies at [c * stride + r].
struct SweepTile {
  size_t columns = 0, stride = 0;
  const float* root = nullptr;  // R_cc of the first column, rows `root_stride` apart; null: no feedback, R is 1
  size_t root_stride = 0;
  const float* cost = nullptr;      // of an error in a column …
  const float* row_cost = nullptr;  // … times that of a row
  // What a level is added to before it is rounded to BF16, the nearest, halves away from 0: an element then gets
  // rounded(anchor + value) - anchor. Null: it gets the value.
  const float* anchors = nullptr;
  float* targets = nullptr;  // in: what is wanted; out: what is left of it
  float* moved = nullptr;    // in: sums over earlier blocks of error_i R_ij; out: R_cc x (moved target - value)
  int8_t* levels = nullptr;  // out
};

using ResidualSweep = void (*)(const SweepTile& tile, const SweepLevels& levels);

// That of the CPU target in force.
ResidualSweep CurrentResidualSweep();

}  // namespace modelstore
