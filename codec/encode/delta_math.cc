#include "codec/encode/delta_math.h"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <exception>

#include "codec/encode/input_moments.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Matrix>;

struct FirstException {
  Mutex mutex;
  std::exception_ptr thrown MS_GUARDED_BY(mutex);
};

}  // namespace

void ForEachPanel(const CompactInput& input, uint64_t rows,
                  const std::function<void(size_t panel, uint64_t first, uint64_t count)>& visit) {
  const uint64_t each = PanelRows(input.columns), panels = PanelCount(rows, input.columns);
  std::atomic<size_t> next{0};
  FirstException first;
  const auto work = [&](size_t) noexcept {
    try {
      for (size_t panel; (panel = next.fetch_add(1, std::memory_order_relaxed)) < panels;)
        visit(panel, panel * each, std::min(each, rows - panel * each));
    } catch (...) {
      next.store(panels, std::memory_order_relaxed);
      const MutexLock lock(first.mutex);
      if (first.thrown == nullptr) first.thrown = std::current_exception();
    }
  };
  if (input.parallel == nullptr || panels < 2) {
    work(0);
  } else {
    (*input.parallel)(std::min(kPanelsAtOnce, panels), work);
  }
  const MutexLock lock(first.mutex);
  if (first.thrown != nullptr) std::rethrow_exception(first.thrown);
}

uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  uint32_t pattern = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  if ((pattern & 0x7fff) == 0 && (bits & 0x7fffffff) != 0) ++pattern;
  if ((pattern & 0x7f80) == 0x7f80) --pattern;
  return static_cast<uint16_t>(pattern);
}

float FromBf16(uint16_t pattern) { return std::bit_cast<float>(static_cast<uint32_t>(pattern) << 16); }

double EntropyBits(std::span<const double> counts) {
  double total = 0, sum = 0;
  for (const double n : counts) {
    if (!(n > 0)) continue;
    total += n;
    sum += n * std::log2(n);
  }
  return total > 0 ? total * std::log2(total) - sum : 0;
}

double LevelBits(std::span<const int8_t> levels) {
  std::array<double, 256> counts{};
  for (const int8_t l : levels) ++counts[static_cast<uint8_t>(l)];
  return EntropyBits(counts);
}

void RowEnergies(const InputMoments* moments, const float* e, uint64_t rows, uint64_t columns,
                 std::vector<float>& scratch, double* energies) {
  const auto m = static_cast<Eigen::Index>(rows), n = static_cast<Eigen::Index>(columns);
  const ConstMap error(e, m, n);
  if (moments == nullptr) {
    for (Eigen::Index i = 0; i < m; ++i) energies[i] = error.row(i).cast<double>().squaredNorm();
    return;
  }
  scratch.resize(rows * columns);
  Eigen::Map<Matrix> product(scratch.data(), m, n);
  const InputMoments::State& state = moments->state();
  const ConstMap root(state.root.data(), n, n);
  for (Eigen::Index first = 0; first < n; first += kRootBlock) {
    const Eigen::Index count = std::min(kRootBlock, n - first);
    product.middleCols(first, count).noalias() =
        error.leftCols(first + count) * root.block(0, first, first + count, count);
  }
  for (Eigen::Index i = 0; i < m; ++i) energies[i] = product.row(i).cast<double>().squaredNorm() * state.unit;
}

}  // namespace modelstore
