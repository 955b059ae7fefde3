#include "codec/encode/exact_encoder.h"

#include <zstd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "codec/encode/rans_encode.h"
#include "codec/encode/symbol_tables.h"
#include "codec/encode/value_streams.h"
#include "codec/kernels/convert.h"
#include "codec/kernels/value_map.h"
#include "codec/support/zstd_memory.h"

namespace modelstore {
namespace {

constexpr int kZstdLevel = 6;
// What a frame, its streams' 32 states and a class map cost besides the symbols, roughly: for choosing.
constexpr double kStreamBits = kLanes * 16;
constexpr double kClassBits = 2.0 / kSelfChunkElems;
// log2(e) / 2: a fitted table looks better on the sample it was fitted to than on the rest, by about this many bits a
// free parameter (Miller-Madow).
constexpr double kFitBiasBits = 0.72;
constexpr double kSymbolTableBits = 15;

template <typename Fn>
auto WithPattern(unsigned width_bits, Fn fn) {
  switch (width_bits) {
    case 8:
      return fn(uint8_t{});
    case 16:
      return fn(uint16_t{});
    case 32:
      return fn(uint32_t{});
    default:
      return fn(uint64_t{});
  }
}

bool LowHalvesAreZero(ByteSpan f32) {
  for (size_t i = 0; i + 4 <= f32.size(); i += 4) {
    uint16_t low;
    std::memcpy(&low, f32.data() + i, 2);
    if (low != 0) return false;
  }
  return true;
}

// The elements in the coded dtype: the source itself, or the upper halves of F32 copied to *buffer.
ByteSpan InCodedDType(DType dtype, DType coded_dtype, ByteSpan source, Bytes* buffer) {
  if (dtype == coded_dtype) return source;
  buffer->resize(source.size() / 2);
  for (size_t i = 0; i < source.size() / 4; ++i) std::memcpy(buffer->data() + i * 2, source.data() + i * 4 + 2, 2);
  return *buffer;
}

// Counts of a tensor's coded values.
class Histogram {
 public:
  Histogram(bool delta, DType coded_dtype)
      : layout_(FloatLayoutOf(coded_dtype)),
        width_(layout_.width_bits),
        coded_dtype_(coded_dtype),
        contexts_(delta ? layout_.exponent_mask + 1 : kSelfClasses),
        cells_(delta          ? DeltaCellCount(width_)
               : are_tokens() ? kTokenCellCount
                              : SelfCellCount(width_)) {}

  unsigned width_bits() const { return width_; }
  bool are_tokens() const { return coded_dtype_ == DType::kU16; }
  std::span<const uint64_t> Cells(uint32_t context) const {
    if (counts_.empty()) return {};
    return std::span(counts_).subspan(size_t{context} * cells_, cells_);
  }
  uint32_t cell_count() const { return cells_; }
  uint32_t context_count() const { return contexts_; }

  void Merge(const Histogram& other) {
    if (other.counts_.empty()) return;
    Allocate();
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  }

  // Contexts of a delta are counted by the base's whole exponent, so that the window of 16 is chosen afterwards.
  void AddDelta(ByteSpan patterns, ByteSpan predictions) {
    Allocate();
    WithPattern(width_, [&](auto u) {
      using U = decltype(u);
      constexpr size_t kStep = 512;
      std::array<U, kStep> values;
      std::array<uint16_t, kStep> exponents;
      const size_t n = patterns.size() / sizeof(U);
      for (size_t at = 0; at < n; at += kStep) {
        const size_t count = std::min(kStep, n - at);
        for (size_t i = 0; i < count; ++i) {
          U p, b;
          std::memcpy(&p, patterns.data() + (at + i) * sizeof(U), sizeof(U));
          std::memcpy(&b, predictions.data() + (at + i) * sizeof(U), sizeof(U));
          values[i] = DeltaValue(p, b);
          exponents[i] =
              static_cast<uint16_t>(static_cast<uint32_t>(b >> layout_.exponent_shift) & layout_.exponent_mask);
        }
        for (size_t i = 0; i < count; ++i) ++counts_[size_t{exponents[i]} * cells_ + DeltaCell(values[i])];
      }
    });
  }

  void AddSelf(ByteSpan patterns, bool low_bit, const ClassThresholds& thresholds) {
    Allocate();
    WithPattern(width_, [&](auto u) {
      using U = decltype(u);
      std::array<U, kSelfChunkElems> values;
      const size_t n = patterns.size() / sizeof(U);
      const unsigned shift = SelfCellShift(width_);
      for (size_t at = 0; at < n; at += kSelfChunkElems) {
        const size_t count = std::min<size_t>(kSelfChunkElems, n - at);
        const std::byte* chunk = patterns.data() + at * sizeof(U);
        SelfValues<U>(chunk, count, low_bit, values.data());
        const uint8_t c = ClassOfMeasure(ChunkMeasure<U>(coded_dtype_, chunk, count), thresholds);
        uint64_t* counts = &counts_[size_t{c} * cells_];
        if (are_tokens()) {
          for (size_t i = 0; i < count; ++i) ++counts[TokenCell(static_cast<uint16_t>(values[i]))];
        } else {
          for (size_t i = 0; i < count; ++i) ++counts[values[i] >> shift];
        }
      }
    });
  }

 private:
  void Allocate() {
    if (counts_.empty()) counts_.assign(size_t{contexts_} * cells_, 0);
  }

  FloatLayout layout_;
  unsigned width_;
  DType coded_dtype_;
  uint32_t contexts_;
  uint32_t cells_;
  std::vector<uint64_t> counts_;
};

struct FittedModel {
  RansModel model;
  double value_bits = 0;  // of the counted values
  double table_bits = 0;
  double parameters = 0;
};

void AddTableCost(FittedModel& fit, const RansContext& context) {
  fit.table_bits += 7 + kSymbolTableBits * static_cast<double>(context.size());
  fit.parameters += context.empty() ? 0 : static_cast<double>(context.size() - 1);
}

uint64_t Total(std::span<const uint64_t> cells) {
  uint64_t n = 0;
  for (const uint64_t c : cells) n += c;
  return n;
}

FittedModel FitDelta(const Histogram& histogram) {
  FittedModel fit;
  // The window of 16 exponents that holds most elements; those outside join the window's ends.
  std::vector<uint64_t> totals(histogram.context_count());
  for (uint32_t e = 0; e < totals.size(); ++e) totals[e] = Total(histogram.Cells(e));
  uint64_t inside = 0, best_inside = 0;
  uint32_t low = 0;
  for (uint32_t e = 0; e < totals.size(); ++e) {
    inside += totals[e] - (e >= kDeltaContexts ? totals[e - kDeltaContexts] : 0);
    if (inside > best_inside) {
      best_inside = inside;
      low = e >= kDeltaContexts ? e - kDeltaContexts + 1 : 0;
    }
  }
  while (low + 1 < totals.size() && totals[low] == 0) ++low;  // empty contexts above cost nothing, below they do
  fit.model.exponent_low = static_cast<uint16_t>(low);
  fit.model.contexts.resize(kDeltaContexts);
  std::vector<uint64_t> cells(histogram.cell_count());
  for (uint32_t c = 0; c < kDeltaContexts; ++c) {
    std::fill(cells.begin(), cells.end(), 0);
    const uint32_t first = c == 0 ? 0 : low + c;
    const uint32_t last = c + 1 == kDeltaContexts ? static_cast<uint32_t>(totals.size()) - 1 : low + c;
    for (uint32_t e = first; e <= last && e < totals.size(); ++e) {
      if (totals[e] == 0) continue;
      const auto counts = histogram.Cells(e);
      for (size_t i = 0; i < cells.size(); ++i) cells[i] += counts[i];
    }
    RansContext context = FitDeltaContext(cells, histogram.width_bits());
    fit.value_bits += DeltaContextBits(context, cells);
    AddTableCost(fit, context);
    fit.model.contexts[c] = std::move(context);
  }
  while (!fit.model.contexts.empty() && fit.model.contexts.back().empty()) fit.model.contexts.pop_back();
  return fit;
}

void AddSelfContext(FittedModel& fit, const Histogram& histogram, std::span<const uint64_t> cells) {
  const unsigned width = histogram.width_bits();
  RansContext context = histogram.are_tokens() ? FitTokenContext(cells) : FitSelfContext(cells, width);
  fit.value_bits += histogram.are_tokens() ? TokenContextBits(context, cells) : SelfContextBits(context, cells, width);
  AddTableCost(fit, context);
  fit.model.contexts.push_back(std::move(context));
}

// One table for all classes, or one a class where that pays for the tables and the class map.
FittedModel FitSelf(const Histogram& histogram, bool low_bit, bool allow_classes) {
  FittedModel joint;
  joint.model.low_bit = low_bit;
  std::vector<uint64_t> all(histogram.cell_count(), 0);
  for (uint32_t c = 0; c < kSelfClasses; ++c) {
    const auto cells = histogram.Cells(c);
    for (size_t i = 0; i < cells.size(); ++i) all[i] += cells[i];
  }
  AddSelfContext(joint, histogram, all);
  if (!allow_classes) return joint;

  FittedModel classes;
  classes.model.low_bit = low_bit;
  classes.value_bits = kClassBits * static_cast<double>(Total(all));
  for (uint32_t c = 0; c < kSelfClasses; ++c) AddSelfContext(classes, histogram, histogram.Cells(c));
  return classes.value_bits + classes.table_bits < joint.value_bits + joint.table_bits ? classes : joint;
}

// Bytes of the whole tensor when a sample of `sample_elems` elements took these bits.
uint64_t ScaledBytes(const FittedModel& fit, uint64_t elems, uint64_t sample_elems) {
  const double scale = static_cast<double>(elems) / static_cast<double>(sample_elems);
  const double bias = sample_elems < elems ? fit.parameters * kFitBiasBits * scale : 0;
  const double streams = std::ceil(static_cast<double>(elems) / (kBlockBytes / 4)) * kStreamBits;
  return static_cast<uint64_t>((fit.value_bits * scale + bias + fit.table_bits + streams) / 8) + 16;
}

// Thresholds that cut the windows' measures into classes (k-means in one dimension, from quantiles).
ClassThresholds FitThresholds(DType coded_dtype, ByteSpan sample) {
  ClassThresholds thresholds;
  thresholds.fill(0xffffffff);
  return WithPattern(FloatLayoutOf(coded_dtype).width_bits, [&](auto u) {
    using U = decltype(u);
    std::vector<uint32_t> means;
    const size_t n = sample.size() / sizeof(U);
    for (size_t at = 0; at + kSampleWindow <= n; at += kSampleWindow)
      means.push_back(ChunkMeasure<U>(coded_dtype, sample.data() + at * sizeof(U), kSampleWindow));
    if (means.size() < 4 * kSelfClasses) return thresholds;
    std::sort(means.begin(), means.end());
    std::array<double, kSelfClasses> centre;
    for (unsigned c = 0; c < kSelfClasses; ++c) centre[c] = means[(2 * c + 1) * means.size() / (2 * kSelfClasses)];
    for (int round = 0; round < 10; ++round) {
      std::array<double, kSelfClasses> sum{}, count{};
      for (const uint32_t m : means) {
        unsigned c = 0;
        while (c + 1 < kSelfClasses && m > (centre[c] + centre[c + 1]) / 2) ++c;
        sum[c] += m;
        count[c] += 1;
      }
      for (unsigned c = 0; c < kSelfClasses; ++c)
        if (count[c] > 0) centre[c] = sum[c] / count[c];
    }
    for (unsigned c = 0; c + 1 < kSelfClasses; ++c)
      thresholds[c] = static_cast<uint32_t>((centre[c] + centre[c + 1]) / 2);
    return thresholds;
  });
}

// What zstd makes of a sample: it wins where values repeat exactly (constant tensors, masks, tables).
uint64_t ZstdBytes(ByteSpan sample) {
  Bytes out(ZSTD_compressBound(sample.size()));
  const size_t n = ZSTD_compress(out.data(), out.size(), sample.data(), sample.size(), 1);
  ThrowIfOutOfMemory(n);
  return ZSTD_isError(n) ? sample.size() : n;
}

uint64_t RawBytes(DType dtype, uint64_t elems) { return elems * DTypeBytes(dtype); }

}  // namespace

EncodePlan PlanTensor(DType dtype, uint64_t elems, ByteSpan sample, DType base_dtype, ByteSpan base_sample) {
  EncodePlan plan;
  plan.dtype = plan.coded_dtype = dtype;
  plan.elems = elems;
  plan.class_thresholds.fill(0xffffffff);
  plan.estimated_bytes = RawBytes(dtype, elems) + 8;
  if (!DTypeIsFloat(dtype)) {
    plan.encoding = Encoding::kZstd;
    return plan;
  }
  const uint64_t sample_elems = sample.size() / DTypeBytes(dtype);
  if (sample_elems == 0) return plan;
  const uint64_t zstd_bytes = ZstdBytes(sample);
  if (zstd_bytes < sample.size() * 9 / 10) {
    plan.encoding = Encoding::kZstd;
    plan.estimated_bytes = zstd_bytes * elems / sample_elems + 8;
  }
  DType coded = dtype;
  if (dtype == DType::kF32 && LowHalvesAreZero(sample)) coded = DType::kBF16;
  Bytes narrowed;
  const ByteSpan patterns = InCodedDType(dtype, coded, sample, &narrowed);

  const auto consider = [&](Encoding encoding, const FittedModel& fit) {
    const uint64_t bytes = ScaledBytes(fit, elems, sample_elems);
    if (bytes >= plan.estimated_bytes) return;
    plan.encoding = encoding;
    plan.coded_dtype = coded;
    plan.low_bit = fit.model.low_bit;
    plan.estimated_bytes = bytes;
  };
  if (!base_sample.empty()) {
    Bytes prediction(sample_elems * DTypeBytes(coded));
    ConvertFloats(base_dtype, coded, base_sample.data(), prediction.data(), sample_elems);
    Histogram histogram(true, coded);
    histogram.AddDelta(patterns, prediction);
    consider(Encoding::kDelta, FitDelta(histogram));
  }
  // A delta at less than a third of raw cannot lose to self coding, which keeps sign and mantissa.
  const bool delta_wins = plan.encoding == Encoding::kDelta && plan.estimated_bytes * 3 < RawBytes(dtype, elems);
  if (!delta_wins) {
    const ClassThresholds one_class = plan.class_thresholds;
    for (const bool low_bit : {false, true}) {
      if (low_bit && DTypeBytes(coded) != 2) continue;
      Histogram histogram(false, coded);
      histogram.AddSelf(patterns, low_bit, one_class);
      consider(Encoding::kSelf, FitSelf(histogram, low_bit, false));
    }
    if (plan.encoding == Encoding::kSelf) plan.class_thresholds = FitThresholds(coded, patterns);
  }
  return plan;
}

EncodePlan TokenPlan(uint64_t elems, ByteSpan sample) {
  EncodePlan plan;
  plan.encoding = Encoding::kSelf;
  plan.dtype = plan.coded_dtype = DType::kU16;
  plan.elems = elems;
  plan.class_thresholds = FitThresholds(DType::kU16, sample);
  plan.estimated_bytes = RawBytes(plan.dtype, elems) + 8;
  const uint64_t sample_elems = sample.size() / DTypeBytes(plan.dtype);
  if (sample_elems == 0) return plan;
  Histogram histogram(false, plan.coded_dtype);
  histogram.AddSelf(sample, false, plan.class_thresholds);
  plan.estimated_bytes =
      std::min(plan.estimated_bytes, ScaledBytes(FitSelf(histogram, false, true), elems, sample_elems));
  return plan;
}

EncodePlan WithoutNarrowing(EncodePlan plan) {
  plan.coded_dtype = plan.dtype;
  plan.class_thresholds.fill(0xffffffff);
  plan.low_bit = false;
  return plan;
}

struct BlockEncoder::State {
  Frame frame;
  EncodeTables tables;
  ClassThresholds thresholds{};
};

struct FrameBuilder::State {
  EncodePlan plan;
  Frame frame;
  std::unique_ptr<Histogram> histogram;
  bool holds = true;
};

BlockEncoder::BlockEncoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
BlockEncoder::BlockEncoder(BlockEncoder&&) noexcept = default;
BlockEncoder& BlockEncoder::operator=(BlockEncoder&&) noexcept = default;
BlockEncoder::~BlockEncoder() = default;
const Frame& BlockEncoder::frame() const { return state_->frame; }

namespace {

// The entropy-coded form of a block; false when it would not be smaller than raw.
template <typename U>
Result<bool> EncodePatterns(const Frame& frame, const EncodeTables& tables, const ClassThresholds& thresholds,
                            ByteSpan patterns, ByteSpan prediction, size_t max_bytes, Bytes* out) {
  const size_t n = patterns.size() / sizeof(U);
  thread_local std::vector<U> values;
  thread_local std::vector<uint8_t> contexts;
  values.resize(n);
  contexts.resize(n);
  if (frame.encoding == Encoding::kDelta) {
    DeltaValues<U>(patterns.data(), prediction.data(), n, FloatLayoutOf(frame.coded_dtype), frame.model.exponent_low,
                   values.data(), contexts.data());
  } else {
    SelfValues<U>(patterns.data(), n, frame.model.low_bit, values.data());
    const bool classes = frame.model.contexts.size() > 1;
    if (classes) out->resize(((n + kSelfChunkElems - 1) / kSelfChunkElems + 3) / 4);
    for (size_t at = 0, chunk = 0; at < n; at += kSelfChunkElems, ++chunk) {
      const size_t count = std::min<size_t>(kSelfChunkElems, n - at);
      const uint8_t c =
          classes
              ? ClassOfMeasure(ChunkMeasure<U>(frame.coded_dtype, patterns.data() + at * sizeof(U), count), thresholds)
              : uint8_t{0};
      std::fill_n(contexts.data() + at, count, c);
      if (classes) (*out)[chunk / 4] |= static_cast<std::byte>(c << (chunk % 4 * 2));
    }
  }
  const size_t first = FirstStreamElems(static_cast<uint32_t>(n));
  bool uncodable = false;
  bool fits = true;
  const auto stream = [&](size_t begin, size_t count) {
    if (out->size() >= max_bytes) return false;
    return EncodeStream<U>(tables, values.data() + begin, contexts.data() + begin, count, max_bytes - out->size(), out,
                           &uncodable);
  };
  if (first == n) {
    fits = stream(0, n);
  } else {
    const size_t length_at = out->size();
    out->resize(length_at + 4);
    fits = stream(0, first);
    const uint32_t length = static_cast<uint32_t>(out->size() - length_at - 4);
    std::memcpy(out->data() + length_at, &length, 4);
    fits = fits && stream(first, n - first);
  }
  if (uncodable)
    return Internal("an element lies outside the gathered statistics: the source changed while it was stored");
  return fits && out->size() <= max_bytes;
}

}  // namespace

Status BlockEncoder::Encode(uint32_t index, ByteSpan source, ByteSpan prediction, Bytes* out) const {
  const Frame& frame = state_->frame;
  out->clear();
  const uint32_t elems = frame.BlockElems(index);
  if (source.size() != size_t{elems} * DTypeBytes(frame.dtype))
    return Internal("Encode: source of another size than its block");
  if (source.empty()) return OkStatus();
  bool smaller = false;
  switch (frame.encoding) {
    case Encoding::kRaw:
      break;
    case Encoding::kCompact:
    case Encoding::kProjected:
      return Internal("Encode: a compact tensor has no coded blocks");
    case Encoding::kZstd: {
      out->resize(source.size() - 1);
      const size_t n = ZSTD_compress(out->data(), out->size(), source.data(), source.size(), kZstdLevel);
      ThrowIfOutOfMemory(n);
      smaller = !ZSTD_isError(n);
      if (smaller) out->resize(n);
      break;
    }
    case Encoding::kSelf:
    case Encoding::kDelta: {
      if (frame.encoding == Encoding::kDelta && prediction.size() != size_t{elems} * DTypeBytes(frame.coded_dtype))
        return Internal("Encode: prediction of another size than its block");
      if (frame.coded_dtype != frame.dtype && !LowHalvesAreZero(source))
        return Internal("Encode: the source changed while it was stored");
      Bytes narrowed;
      const ByteSpan patterns = InCodedDType(frame.dtype, frame.coded_dtype, source, &narrowed);
      ASSIGN_OR_RETURN(smaller, WithPattern(DTypeBytes(frame.coded_dtype) * 8, [&](auto u) {
                         return EncodePatterns<decltype(u)>(frame, state_->tables, state_->thresholds, patterns,
                                                            prediction, source.size() - 1, out);
                       }));
      break;
    }
  }
  if (!smaller) out->assign(source.begin(), source.end());
  return OkStatus();
}

FrameBuilder::FrameBuilder(const EncodePlan& plan) : state_(std::make_unique<State>()) {
  state_->plan = plan;
  state_->frame = PlainFrame(plan.encoding, plan.dtype, plan.elems);
  state_->frame.coded_dtype = plan.coded_dtype;
  if (needs_statistics())
    state_->histogram = std::make_unique<Histogram>(plan.encoding == Encoding::kDelta, plan.coded_dtype);
}
FrameBuilder::FrameBuilder(FrameBuilder&&) noexcept = default;
FrameBuilder& FrameBuilder::operator=(FrameBuilder&&) noexcept = default;
FrameBuilder::~FrameBuilder() = default;

const Frame& FrameBuilder::frame() const { return state_->frame; }
bool FrameBuilder::needs_statistics() const {
  return state_->plan.encoding == Encoding::kSelf || state_->plan.encoding == Encoding::kDelta;
}
bool FrameBuilder::plan_holds() const { return state_->holds; }

void FrameBuilder::AddBlock(uint32_t /*index*/, ByteSpan source, ByteSpan prediction) {
  if (!needs_statistics() || !state_->holds) return;
  if (state_->plan.coded_dtype != state_->plan.dtype && !LowHalvesAreZero(source)) {
    state_->holds = false;
    return;
  }
  Bytes narrowed;
  const ByteSpan patterns = InCodedDType(state_->plan.dtype, state_->plan.coded_dtype, source, &narrowed);
  if (state_->plan.encoding == Encoding::kDelta) {
    state_->histogram->AddDelta(patterns, prediction);
  } else {
    state_->histogram->AddSelf(patterns, state_->plan.low_bit, state_->plan.class_thresholds);
  }
}

void FrameBuilder::Merge(const FrameBuilder& other) {
  state_->holds = state_->holds && other.state_->holds;
  if (needs_statistics()) state_->histogram->Merge(*other.state_->histogram);
}

Result<BlockEncoder> FrameBuilder::Finish() && {
  if (!state_->holds) return Internal("Finish: the plan does not hold for this tensor");
  auto out = std::make_unique<BlockEncoder::State>();
  out->frame = std::move(state_->frame);
  const EncodePlan& plan = state_->plan;
  if (needs_statistics()) {
    FittedModel fit = plan.encoding == Encoding::kDelta ? FitDelta(*state_->histogram)
                                                        : FitSelf(*state_->histogram, plan.low_bit, true);
    if (ScaledBytes(fit, plan.elems, plan.elems) >= RawBytes(plan.dtype, plan.elems)) {
      out->frame = PlainFrame(Encoding::kRaw, plan.dtype, plan.elems);
    } else {
      out->frame.model = std::move(fit.model);
      out->thresholds = plan.class_thresholds;
      PrepareTables(out->frame);
      out->tables = EncodeTables(out->frame.model, *out->frame.tables);
    }
  }
  return BlockEncoder(std::move(out));
}

}  // namespace modelstore
