#include "codec/encode/symbol_tables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace modelstore {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLog2E = 1.4426950408889634;
// Bits that one more symbol adds to the frame: frequency and count of raw bits.
constexpr double kSymbolTableBits = 15;

// What a symbol that needs a second phase of raw bits is charged besides: splitting it costs table bits once, the phase
// time with every use.
constexpr double kSecondPhaseBits = 0.05;

// log2 of counts; planning calls it a hundred million times for a small model, hence a table for the small ones.
double Log2(uint64_t n) {
  static const std::array<double, 4096> table = [] {
    std::array<double, 4096> t{};
    for (size_t i = 1; i < t.size(); ++i) t[i] = std::log2(static_cast<double>(i));
    return t;
  }();
  if (n < table.size()) return table[n];
  const int shift = 52 - std::countl_zero(n);  // keeps 12 leading bits: relative error below 2^-12
  return table[n >> shift] + shift;
}

// Bits of `count` occurrences of a symbol among `total` when its probability is at least 1 / kProbScale: what the floor
// takes from the others is charged to it.
double SymbolBits(uint64_t count, uint64_t total, double log2_total) {
  if (count == 0) return 0;
  const double n = static_cast<double>(count);
  const double floor = static_cast<double>(total) / kProbScale;
  if (n >= floor) return n * (log2_total - Log2(count));
  return n * kProbBits + (floor - n) * kLog2E;
}

// Frequencies that sum to kProbScale, at least 1 where something was counted, 0 elsewhere.
void SetFrequencies(RansContext& context, std::span<const uint64_t> counts) {
  uint64_t total = 0;
  for (const uint64_t c : counts) total += c;
  uint32_t sum = 0;
  for (size_t s = 0; s < context.size(); ++s) {
    uint32_t f = 0;
    if (counts[s] != 0)
      f = std::max<uint32_t>(
          1, static_cast<uint32_t>(static_cast<double>(counts[s]) * kProbScale / static_cast<double>(total)));
    context[s].freq = static_cast<uint16_t>(f);
    sum += f;
  }
  // Give or take single steps where they gain most or cost least.
  while (sum != kProbScale) {
    const bool give = sum < kProbScale;
    size_t best = context.size();
    double best_value = give ? -1 : kInfinity;
    for (size_t s = 0; s < context.size(); ++s) {
      const double f = context[s].freq;
      if (counts[s] == 0 || (!give && f <= 1)) continue;
      const double value = static_cast<double>(counts[s]) / (give ? f + 0.5 : f - 0.5);
      if (give ? value > best_value : value < best_value) {
        best = s;
        best_value = value;
      }
    }
    context[best].freq = static_cast<uint16_t>(give ? context[best].freq + 1 : context[best].freq - 1);
    sum += give ? 1 : static_cast<uint32_t>(-1);
  }
  uint32_t start = 0;
  for (RansSymbol& symbol : context) {
    symbol.start = static_cast<uint16_t>(start);
    start += symbol.freq;
  }
}

// Sets bases from raw bits, drops trailing symbols that never occur, sets frequencies.
RansContext Finish(RansContext context, std::vector<uint64_t> counts) {
  while (!context.empty() && counts.back() == 0) {
    context.pop_back();
    counts.pop_back();
  }
  uint64_t base = 0;
  for (RansSymbol& symbol : context) {
    symbol.base = base;
    if (symbol.raw_bits < 64) base += uint64_t{1} << symbol.raw_bits;
  }
  SetFrequencies(context, counts);
  return context;
}

// Pruned binary tree over self cells. Node 1 is the root; node n's children are 2n and 2n + 1; leaves are the cells.
class CellTree {
 public:
  CellTree(std::span<const uint64_t> cells, unsigned width_bits)
      : cells_(static_cast<uint32_t>(cells.size())),
        cell_raw_bits_(SelfCellShift(width_bits)),
        counts_(2 * cells.size()) {
    std::copy(cells.begin(), cells.end(), counts_.begin() + cells_);
    for (uint32_t n = cells_ - 1; n > 0; --n) counts_[n] = counts_[2 * n] + counts_[2 * n + 1];
    total_ = counts_[1];
    log2_total_ = Log2(total_);
    leaf_bits_.assign(counts_.size(), 0.0);
    split_.assign(counts_.size(), 0);
    for (uint32_t n = 1; n < counts_.size(); ++n) {
      if (counts_[n] == 0) continue;
      const double count = static_cast<double>(counts_[n]);
      leaf_bits_[n] = SymbolBits(counts_[n], total_, log2_total_) + count * RawBits(n);
      if (RawBits(n) > kFirstRawBits && kFirstRawBits >= cell_raw_bits_) leaf_bits_[n] += count * kSecondPhaseBits;
    }
  }

  RansContext Fit(size_t max_symbols) {
    double low = 0, high = kSymbolTableBits;
    Prune(1, high);
    while (Leaves(1) > max_symbols) {
      low = high;
      high *= 4;
      Prune(1, high);
    }
    for (int i = 0; i < 6 && low > 0; ++i) {
      const double middle = std::sqrt(low * high);
      Prune(1, middle);
      (Leaves(1) > max_symbols ? low : high) = middle;
    }
    Prune(1, high);
    RansContext context;
    std::vector<uint64_t> counts;
    Collect(1, context, counts);
    return Finish(std::move(context), std::move(counts));
  }

 private:
  unsigned RawBits(uint32_t node) const {
    return cell_raw_bits_ + static_cast<unsigned>(std::countr_zero(cells_)) -
           (31 - static_cast<unsigned>(std::countl_zero(node)));
  }

  // Cheapest cover of the node's range when a leaf costs `penalty` bits besides its own.
  double Prune(uint32_t node, double penalty) {
    const double leaf = leaf_bits_[node] + penalty;
    split_[node] = false;
    if (node >= cells_ || counts_[node] == 0) return leaf;
    const double children = Prune(2 * node, penalty) + Prune(2 * node + 1, penalty);
    split_[node] = children < leaf;
    return std::min(leaf, children);
  }
  size_t Leaves(uint32_t node) const { return split_[node] ? Leaves(2 * node) + Leaves(2 * node + 1) : 1; }
  void Collect(uint32_t node, RansContext& context, std::vector<uint64_t>& counts) const {
    if (split_[node]) {
      Collect(2 * node, context, counts);
      Collect(2 * node + 1, context, counts);
      return;
    }
    RansSymbol symbol;
    symbol.raw_bits = static_cast<uint8_t>(RawBits(node));
    context.push_back(symbol);
    counts.push_back(counts_[node]);
  }

  uint32_t cells_;
  unsigned cell_raw_bits_;
  std::vector<uint64_t> counts_;
  uint64_t total_ = 0;
  double log2_total_ = 0;
  std::vector<double> leaf_bits_;
  std::vector<char> split_;
};

uint64_t Sum(std::span<const uint64_t> counts) {
  uint64_t n = 0;
  for (const uint64_t c : counts) n += c;
  return n;
}

}  // namespace

RansContext FitDeltaContext(std::span<const uint64_t> cells, unsigned width_bits) {
  std::vector<uint64_t> before(cells.size() + 1, 0);  // values in cells below
  for (size_t c = 0; c < cells.size(); ++c) before[c + 1] = before[c] + cells[c];
  const uint64_t total = before.back();
  if (total == 0) return {};
  size_t end = cells.size();  // first boundary above every counted value
  while (cells[end - 1] == 0) --end;
  const double log2_total = Log2(total);

  // The first value that needs no symbol; 0 stands for 2^64.
  const uint64_t limit = end < cells.size() ? DeltaCellBegin(static_cast<uint32_t>(end))
                         : width_bits < 64  ? uint64_t{1} << width_bits
                                            : 0;

  // best[b][k]: least bits for the values below boundary b with k symbols. A symbol of r raw bits leads from b to the
  // boundary 2^r values on, or to `end` when it reaches at least that far.
  struct Step {
    double bits = kInfinity;
    uint16_t from = 0;
    uint8_t raw_bits = 0;
  };
  std::vector<std::array<Step, kDeltaSymbols + 1>> best(end + 1);
  best[0][0].bits = 0;
  for (size_t b = 0; b < end; ++b) {
    const auto& here = best[b];
    if (std::all_of(here.begin(), here.end(), [](const Step& s) { return s.bits == kInfinity; })) continue;
    const uint64_t begin = DeltaCellBegin(static_cast<uint32_t>(b));
    for (unsigned r = 0; r <= width_bits; ++r) {
      const uint64_t next = r < 64 ? begin + (uint64_t{1} << r) : 0;
      const bool covers = r == width_bits || (limit != 0 && next >= limit);
      size_t to = end;
      if (!covers) {
        to = DeltaCell(next);
        if (to > end || DeltaCellBegin(static_cast<uint32_t>(to)) != next) continue;
      }
      const uint64_t count = before[to] - before[b];
      const double bits = SymbolBits(count, total, log2_total) + static_cast<double>(count) * r + kSymbolTableBits;
      for (unsigned k = 0; k < kDeltaSymbols; ++k) {
        if (here[k].bits + bits < best[to][k + 1].bits)
          best[to][k + 1] = {here[k].bits + bits, static_cast<uint16_t>(b), static_cast<uint8_t>(r)};
      }
      if (covers) break;
    }
  }
  unsigned k = 1;
  for (unsigned i = 2; i <= kDeltaSymbols; ++i)
    if (best[end][i].bits < best[end][k].bits) k = i;
  RansContext context(k);
  std::vector<uint64_t> counts(k);
  for (size_t b = end; k > 0; --k) {
    const Step& step = best[b][k];
    context[k - 1].raw_bits = step.raw_bits;
    counts[k - 1] = before[b] - before[step.from];
    b = step.from;
  }
  return Finish(std::move(context), std::move(counts));
}

RansContext FitSelfContext(std::span<const uint64_t> cells, unsigned width_bits) {
  if (Sum(cells) == 0) return {};
  return CellTree(cells, width_bits).Fit(kSelfSymbols);
}

RansContext FitTokenContext(std::span<const uint64_t> cells) {
  std::vector<uint64_t> before(cells.size() + 1, 0);  // tokens in cells below
  for (size_t c = 0; c < cells.size(); ++c) before[c + 1] = before[c] + cells[c];
  const uint64_t total = before.back();
  if (total == 0) return {};
  size_t end = cells.size();
  while (cells[end - 1] == 0) --end;
  const double log2_total = Log2(total);

  // The cheapest way to each boundary between cells when a symbol costs `penalty` bits besides its own.
  struct Step {
    double bits = kInfinity;
    uint16_t from = 0, symbols = 0;
    uint8_t raw_bits = 0;
  };
  std::vector<Step> best;
  const auto partition = [&](double penalty) {
    best.assign(end + 1, {});
    best[0].bits = 0;
    for (size_t b = 0; b < end; ++b) {
      if (best[b].bits == kInfinity) continue;
      const uint32_t begin = TokenCellBegin(static_cast<uint32_t>(b));
      for (unsigned r = 0; r <= 16; ++r) {
        const uint32_t next = begin + (1u << r);
        const bool covers = next >= TokenCellBegin(static_cast<uint32_t>(end));
        const size_t to = covers ? end : TokenCell(static_cast<uint16_t>(next));
        if (!covers && TokenCellBegin(static_cast<uint32_t>(to)) != next) continue;
        const uint64_t count = before[to] - before[b];
        const double each = r + (r > kFirstRawBits ? kSecondPhaseBits : 0);
        const double bits =
            best[b].bits + SymbolBits(count, total, log2_total) + static_cast<double>(count) * each + penalty;
        if (bits < best[to].bits) {
          best[to] = {bits, static_cast<uint16_t>(b), static_cast<uint16_t>(best[b].symbols + 1),
                      static_cast<uint8_t>(r)};
        }
        if (covers) break;
      }
    }
    return best[end].symbols;
  };
  double low = 0, high = kSymbolTableBits;
  while (partition(high) > kSelfSymbols) {
    low = high;
    high *= 4;
  }
  for (int i = 0; i < 6 && low > 0; ++i) {
    const double middle = std::sqrt(low * high);
    (partition(middle) > kSelfSymbols ? low : high) = middle;
  }
  RansContext context(partition(high));
  std::vector<uint64_t> counts(context.size());
  for (size_t b = end, s = context.size(); s-- > 0; b = best[b].from) {
    context[s].raw_bits = best[b].raw_bits;
    counts[s] = before[b] - before[best[b].from];
  }
  return Finish(std::move(context), std::move(counts));
}

double ContextBits(const RansContext& context, std::span<const uint64_t> symbol_counts) {
  double bits = 0;
  for (size_t s = 0; s < context.size(); ++s) {
    if (symbol_counts[s] == 0) continue;
    bits += static_cast<double>(symbol_counts[s]) * (kProbBits - Log2(context[s].freq) + context[s].raw_bits);
  }
  return bits;
}

double DeltaContextBits(const RansContext& context, std::span<const uint64_t> cells) {
  std::array<uint64_t, kDeltaSymbols> counts{};
  size_t s = 0;
  for (uint32_t c = 0; c < cells.size(); ++c) {
    if (cells[c] == 0) continue;
    while (s + 1 < context.size() && DeltaCellBegin(c) >= context[s + 1].base) ++s;
    counts[s] += cells[c];
  }
  return ContextBits(context, counts);
}

double TokenContextBits(const RansContext& context, std::span<const uint64_t> cells) {
  std::array<uint64_t, kSelfSymbols> counts{};
  size_t s = 0;
  for (uint32_t c = 0; c < cells.size(); ++c) {
    if (cells[c] == 0) continue;
    while (s + 1 < context.size() && TokenCellBegin(c) >= context[s + 1].base) ++s;
    counts[s] += cells[c];
  }
  return ContextBits(context, counts);
}

double SelfContextBits(const RansContext& context, std::span<const uint64_t> cells, unsigned width_bits) {
  std::array<uint64_t, kSelfSymbols> counts{};
  size_t s = 0;
  for (uint64_t c = 0; c < cells.size(); ++c) {
    if (cells[c] == 0) continue;
    while (s + 1 < context.size() && (c << SelfCellShift(width_bits)) >= context[s + 1].base) ++s;
    counts[s] += cells[c];
  }
  return ContextBits(context, counts);
}

}  // namespace modelstore
