#include "catalog/write/compact_coder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "codec/decode/block_decoder.h"
#include "codec/kernels/level_tokens.h"
#include "codec/support/guarded.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

constexpr uint64_t kWindowElems = 64 << 10;
// Levels of one wave of tensors, which are encoded together and then written in order; also the elements after which a
// tensor of tokens is full.
constexpr uint64_t kWaveLevels = 16 << 20;
constexpr uint64_t kPartElems = 8 << 20;
// Estimating a residual costs fifty times what a rank costs: one rank has it (on the real pair 4, 8 and 16 are within
// 2 % of each other, 0 is worse), and only where a budget can pay it (4 standard deviations take a sixth of a bit an
// element). Above this ratio low rank alone diverges less at equal bytes, though its drift is larger: half of that is
// noise of the factors, which costs little.
constexpr uint32_t kLadderRanks[] = {1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr uint32_t kResidualRank = 16;
constexpr float kResidualSteps[] = {4, 3, 2.5f, 2, 1.5f, 1, 0.7f, 0.5f};
constexpr double kMaxResidualRatio = 70;
constexpr double kLargestCorrection = 4;  // of an estimate, by what was measured of others of its kind
// Larger changes would have scales that the format does not allow.
constexpr float kLargestDelta = 0x1p56f;
constexpr float kLadderSparsities[] = {0.5f, 0.7f, 0.8f, 0.9f, 0.95f, 0.98f, 0.99f};

std::string Megabytes(uint64_t bytes) { return std::to_string((bytes + 999'999) / 1'000'000) + " MB"; }

bool HasResidual(const CompactChoice& choice) { return choice.residual_step > 0 || choice.bits > 0; }

// Estimates of a kind are wrong by about the same factor: what one choice took tells of the others that were not tried.
void Learn(CompactItem* item) {
  std::vector<CompactEstimate>& estimates = item->analysis.estimates;
  CompactEstimate& picked = estimates[item->pick];
  // Where nothing was left of the residual this choice is not like its kind.
  const bool is_odd = HasResidual(picked.choice) && !item->segment.has_residual;
  const auto factor = [&](double measured, double estimate) {
    return estimate > 0 && !is_odd ? std::clamp(measured / estimate, 1 / kLargestCorrection, kLargestCorrection) : 1;
  };
  const double bytes = factor(item->bytes, picked.bytes), error = factor(item->error, picked.error);
  item->tried.resize(estimates.size());
  for (size_t i = 0; i < estimates.size(); ++i) {
    const CompactChoice& choice = estimates[i].choice;
    const bool is_alike = choice.bits == picked.choice.bits && (choice.rank > 0) == (picked.choice.rank > 0) &&
                          (choice.residual_step > 0) == (picked.choice.residual_step > 0);
    if (item->tried[i] || !is_alike || i == item->pick) continue;
    estimates[i].bytes *= bytes;
    estimates[i].error *= error;
  }
  picked.bytes = item->bytes;
  picked.error = item->error;
  item->tried[item->pick] = true;
}

// Groups of elements share a step: they lie as the tensor is stored.
bool PrunesGroups(const CompactOptions& options) {
  return options.schedule == CompactSchedule::kAptc || (options.choice && options.choice->bits > 0);
}

// Where an element of the tensor is in what the encoder gets.
uint64_t PlaceOf(const CompactItem& item, uint64_t elem) {
  return item.transposed ? elem % item.columns * item.rows + elem / item.columns : elem;
}

std::vector<int8_t> Transposed(const std::vector<int8_t>& levels, uint64_t rows, uint64_t columns) {
  std::vector<int8_t> out(levels.size());
  for (uint64_t i = 0; !levels.empty() && i < rows; ++i) {
    for (uint64_t j = 0; j < columns; ++j) out[j * rows + i] = levels[i * columns + j];
  }
  return out;
}

// What was encoded as [outputs, inputs] as the tensor is stored: (U V)^T = V^T U^T.
void Transpose(CompactTensor* tensor) {
  CompactSegment& segment = tensor->segment;
  std::vector<int8_t> right = Transposed(tensor->left, segment.rows, segment.rank);
  tensor->left = Transposed(tensor->right, segment.rank, segment.columns);
  tensor->right = std::move(right);
  tensor->residual = Transposed(tensor->residual, segment.rows, segment.columns);
  std::swap(segment.rows, segment.columns);
}

// What a budget chooses from, for a tensor of that shape.
std::vector<CompactChoice> LadderFor(const CompactOptions& options, uint64_t rows, uint64_t columns) {
  CompactChoice base;
  base.scale = options.scale ? static_cast<float>(*options.scale) : 0;
  std::vector<CompactChoice> ladder;
  if (PrunesGroups(options)) {
    base.bits = options.choice ? options.choice->bits : 2;
    base.group_elems = options.choice ? options.choice->group_elems : 0;
    for (const float sparsity : kLadderSparsities) {
      base.sparsity = sparsity;
      ladder.push_back(base);
    }
    return ladder;
  }
  const auto fits = [&](uint32_t rank) {
    return rank <= std::min(rows, columns) && uint64_t{rank} * columns <= kMaxRightFactorLevels;
  };
  for (const uint32_t rank : kLadderRanks) {
    if (!fits(rank)) continue;
    base.rank = rank;
    ladder.push_back(base);
  }
  if (options.target_ratio && *options.target_ratio > kMaxResidualRatio) return ladder;
  base.rank = fits(kResidualRank) ? kResidualRank : 0;
  for (const float step : kResidualSteps) {
    base.residual_step = step;
    ladder.push_back(base);
  }
  return ladder;
}

CompactChoice LargestOf(const std::vector<CompactChoice>& ladder) {
  CompactChoice largest;
  for (const CompactChoice& choice : ladder) {
    largest.rank = std::max(largest.rank, choice.rank);
    largest.residual_step = std::max(largest.residual_step, choice.residual_step);
    largest.bits = std::max(largest.bits, choice.bits);
  }
  return largest;
}

// What the tasks of a loop hold together.
class MemoryGate {
 public:
  explicit MemoryGate(uint64_t bytes) : free_(bytes) {}
  // Precondition: bytes is at most what there is.
  void Take(uint64_t bytes) {
    MutexLock lock(mutex_);
    while (free_ < bytes) changed_.Wait(mutex_);
    free_ -= bytes;
  }
  void GiveBack(uint64_t bytes) {
    const MutexLock lock(mutex_);
    free_ += bytes;
    changed_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  uint64_t free_ MS_GUARDED_BY(mutex_);
};

// Tokens or scales on their way into tensors of the store.
class PartWriter {
 public:
  PartWriter(const CompactCoder::Sink& sink, CompactCoder::Part part, std::vector<ViewSegment>* view)
      : sink_(sink), part_(part), view_(view) {}
  unsigned group() const { return part_ == CompactCoder::Part::kPairs ? kFactorTokenLevels : kResidualTokenLevels; }

  void AddLevels(const std::vector<int8_t>& levels) {
    const size_t whole = levels.size() / group();
    const size_t at = values_.size();
    values_.resize(at + (levels.size() + group() - 1) / group());
    LevelsToTokens(levels.data(), whole, group(), values_.data() + at);
    if (whole * group() == levels.size()) return;
    int8_t last[kResidualTokenLevels] = {};
    std::copy(levels.begin() + static_cast<ptrdiff_t>(whole * group()), levels.end(), last);
    LevelsToTokens(last, 1, group(), values_.data() + at + whole);
  }
  void AddValues(const std::vector<uint16_t>& values) { values_.insert(values_.end(), values.begin(), values.end()); }
  // Elements [begin, end) of what a view shows of stored tensors.
  Status AddStored(Catalog& catalog, const std::vector<ViewSegment>& view, uint64_t begin, uint64_t end) {
    const size_t at = values_.size();
    values_.resize(at + (end - begin));
    const DType dtype = part_ == CompactCoder::Part::kScales ? DType::kBF16 : DType::kU16;
    return catalog.reader().ReadPrediction(view, dtype, begin, std::as_writable_bytes(std::span(values_).subspan(at)));
  }
  Status FlushWhenFull() { return values_.size() >= kPartElems ? Flush() : OkStatus(); }
  Status Flush() {
    if (values_.empty()) return OkStatus();
    ASSIGN_OR_RETURN(const TensorId id, sink_(std::as_bytes(std::span(values_)), part_));
    view_->push_back({ViewSegment::Kind::kIdentity, values_.size(), id, 0});
    values_.clear();
    return OkStatus();
  }

 private:
  const CompactCoder::Sink& sink_;
  const CompactCoder::Part part_;
  std::vector<ViewSegment>* view_;
  std::vector<uint16_t> values_;
};

}  // namespace

CompactCoder::MomentsKind CompactCoder::MomentsOf(const CompactOptions& options, const MomentsFile* moments,
                                                  const SourceExtent& tensor) {
  if (moments == nullptr) return {};
  if (moments->Lists(tensor.name)) return {.any = true};
  const bool transposed =
      tensor.shape.size() == 2 && !PrunesGroups(options) && moments->Lists(MomentsFile::TransposedName(tensor.name));
  return {.any = transposed, .transposed = transposed};
}

uint64_t CompactCoder::MemoryFor(const CompactOptions& options, uint64_t rows, uint64_t columns, bool has_moments,
                                 bool transposed) {
  // The levels of a residual are transposed back.
  if (transposed) return MemoryFor(options, columns, rows, has_moments, false) + rows * columns;
  const CompactChoice largest =
      HasFixedChoice(options) ? *options.choice : LargestOf(LadderFor(options, rows, columns));
  uint64_t bytes =
      rows * columns * (sizeof(float) + sizeof(uint16_t)) + CompactMemoryBytes(rows, columns, has_moments, largest);
  if (has_moments) bytes += columns * columns * sizeof(float) + InputMoments::MemoryBytes(columns);
  return bytes;
}

Status CompactCoder::CheckMemory(const CompactItem& item) const {
  const uint64_t need = MemoryFor(options_, item.rows, item.columns, item.has_moments, item.transposed);
  if (need <= memory_bytes_) return OkStatus();
  return ResourceExhausted("tensor '" + item.source->name + "' of " + item.file->shown_as + " takes " +
                           Megabytes(need) + " of memory to make compact, this push has " + Megabytes(memory_bytes_) +
                           "; give it a larger memory budget");
}

Status CompactCoder::FindMoments(std::vector<CompactItem>* items) {
  if (options_.moments == nullptr) return OkStatus();
  const SourceFile& source = options_.moments->files().front();
  ASSIGN_OR_RETURN(MomentsFile moments, MomentsFile::Open(source));
  moments_ = std::make_unique<MomentsFile>(std::move(moments));
  const auto find = [&](size_t i) -> Status {
    CompactItem& item = (*items)[i];
    RETURN_IF_ERROR(job_.Check());
    const std::string& name = item.source->name;
    const MomentsKind kind = MomentsOf(options_, moments_.get(), *item.source);
    item.transposed = kind.transposed;
    item.moments_name = kind.transposed ? MomentsFile::TransposedName(name) : name;
    ASSIGN_OR_RETURN(item.has_moments, kind.transposed ? moments_->HasTransposed(name, item.rows)
                                                       : moments_->HasMoments(name, item.columns));
    // Weights of rows are of those that the encoder sees.
    if (!kind.transposed) {
      ASSIGN_OR_RETURN(item.has_rows, moments_->HasRows(name, item.rows));
    }
    if (!item.has_moments) return OkStatus();
    ASSIGN_OR_RETURN(item.moments, moments_->HashOf(item.moments_name));
    return OkStatus();
  };
  RETURN_IF_ERROR(lanes_.Run(items->size(), find));
  size_t missing = 0;
  std::string first;
  for (const CompactItem& item : *items) {
    if (item.has_moments || item.has_rows) continue;
    if (missing++ == 0) first = item.source->name;
  }
  if (missing == items->size())
    return InvalidArgument("moments " + source.shown_as + ": they have none of this model's tensors ('" + first +
                           "' is the first that is missing): they are those of another model");
  if (missing > 0)
    job_.Warn("moments " + source.shown_as + ": " + std::to_string(missing) + " of " + std::to_string(items->size()) +
              " tensors are missing ('" + first + "' is the first); those are made compact without");
  return OkStatus();
}

Status CompactCoder::Examine(std::vector<CompactItem>* items) {
  RETURN_IF_ERROR(FindMoments(items));
  for (const CompactItem& item : *items) RETURN_IF_ERROR(CheckMemory(item));
  std::vector<CompactItem*> all;
  uint64_t bytes = 0;
  for (CompactItem& item : *items) {
    all.push_back(&item);
    bytes += item.source->bytes;
    if (HasFixedChoice(options_)) item.choice = *options_.choice;
  }
  job_.Begin("examining", bytes);
  const Visit visit = [&](CompactItem& item, const CompactInput& input) -> Status {
    if (!HasFixedChoice(options_)) {
      const std::vector<CompactChoice> ladder = LadderFor(options_, item.rows, item.columns);
      ASSIGN_OR_RETURN(item.analysis, AnalyzeTensor(input, ladder));
    }
    job_.Advance(item.source->bytes);
    return OkStatus();
  };
  // With a fixed choice only what is not finite is of interest.
  return ForEachDelta(all, visit);
}

Result<std::vector<CompactCandidate>> CompactCoder::Candidates(const std::vector<CompactItem>& items) const {
  uint64_t total = 0;
  for (const CompactItem& item : items) total += item.elems();
  std::vector<CompactCandidate> candidates;
  for (size_t i = 0; i < items.size(); ++i)
    candidates.push_back({&items[i].analysis, static_cast<double>(items[i].elems()) / static_cast<double>(total),
                          static_cast<uint32_t>(i)});
  return candidates;
}

namespace {

void TakePicks(const CompactPlan& plan, std::vector<CompactItem>* items) {
  for (size_t i = 0; i < items->size(); ++i) {
    CompactItem& item = (*items)[i];
    item.pick = plan.picks[i];
    item.choice = item.analysis.estimates[item.pick].choice;
  }
}

std::vector<uint32_t> PicksOf(const std::vector<CompactItem>& items) {
  std::vector<uint32_t> picks;
  for (const CompactItem& item : items) picks.push_back(static_cast<uint32_t>(item.pick));
  return picks;
}

// The words were right; the model does not allow it.
Status AsUnsupported(const Status& status) {
  return status.code() == StatusCode::kInvalidArgument ? Unsupported(std::string(status.message())) : status;
}

}  // namespace

Status CompactCoder::PlanBytes(std::vector<CompactItem>* items, double budget_bytes, bool again) const {
  ASSIGN_OR_RETURN(const std::vector<CompactCandidate> candidates, Candidates(*items));
  if (again && options_.schedule == CompactSchedule::kRd) {
    TakePicks(AdjustForBytes(candidates, PicksOf(*items), budget_bytes), items);
    return OkStatus();
  }
  const Result<CompactPlan> plan = PlanForBytes(candidates, options_.schedule, budget_bytes);
  if (!plan.ok()) return AsUnsupported(plan.status());
  TakePicks(*plan, items);
  return OkStatus();
}

Status CompactCoder::PlanDrift(std::vector<CompactItem>* items, double max_drift, bool again) const {
  ASSIGN_OR_RETURN(const std::vector<CompactCandidate> candidates, Candidates(*items));
  if (again && options_.schedule == CompactSchedule::kRd) {
    TakePicks(AdjustForDrift(candidates, PicksOf(*items), max_drift), items);
    return OkStatus();
  }
  const Result<CompactPlan> plan = PlanForDrift(candidates, options_.schedule, max_drift);
  if (!plan.ok()) return AsUnsupported(plan.status());
  TakePicks(*plan, items);
  return OkStatus();
}

double CompactCoder::BytesOf(const std::vector<CompactItem>& items) {
  double sum = 0;
  for (const CompactItem& item : items) sum += item.bytes;
  return sum;
}

double CompactCoder::DriftOf(const std::vector<CompactItem>& items) {
  double sum = 0, elems = 0;
  for (const CompactItem& item : items) {
    const double own = static_cast<double>(item.elems());
    elems += own;
    if (item.energy > 0) sum += own * item.error / item.energy;
  }
  return elems > 0 ? sum / elems : 0;
}

Result<bool> CompactCoder::LoadDelta(const CompactItem& item, std::vector<float>* out,
                                     std::vector<uint16_t>* base_out) const {
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*item.file));
  const DType dtype = item.source->dtype;
  const uint32_t width = DTypeBytes(dtype);
  const std::vector<ViewSegment> view = {{ViewSegment::Kind::kIdentity, item.elems(), item.base, 0}};
  out->resize(item.elems());
  const bool keeps_base = dtype == DType::kBF16;
  base_out->resize(keeps_base ? item.elems() : 0);
  Buffer source, base;
  std::vector<float> own, predicted;
  std::vector<double> own_wide, predicted_wide;
  bool finite = true;
  for (uint64_t at = 0; at < item.elems(); at += kWindowElems) {
    RETURN_IF_ERROR(job_.Check());
    const uint64_t elems = std::min(kWindowElems, item.elems() - at);
    RETURN_IF_ERROR(reader.ReadAt(item.source->begin + at * width, source.Resize(elems * width)));
    RETURN_IF_ERROR(catalog_.reader().ReadPrediction(view, dtype, at, base.Resize(elems * width)));
    const auto subtract = [&](auto& a, auto& b) {
      a.resize(elems);
      b.resize(elems);
      using T = std::remove_reference_t<decltype(a[0])>;
      constexpr DType kWide = std::is_same_v<T, float> ? DType::kF32 : DType::kF64;
      ConvertElements(dtype, kWide, source.span(), std::as_writable_bytes(std::span(a)));
      ConvertElements(dtype, kWide, base.span(), std::as_writable_bytes(std::span(b)));
      for (uint64_t i = 0; i < elems; ++i) {
        const float delta = static_cast<float>(a[i] - b[i]);
        finite &= std::abs(delta) <= kLargestDelta;  // not NaN either
        (*out)[PlaceOf(item, at + i)] = delta;
      }
    };
    if (keeps_base) {
      subtract(own, predicted);
      const auto* patterns = reinterpret_cast<const uint16_t*>(base.span().data());
      for (uint64_t i = 0; i < elems; ++i) (*base_out)[PlaceOf(item, at + i)] = patterns[i];
    } else {
      subtract(own_wide, predicted_wide);
    }
  }
  return finite;
}

Status CompactCoder::VisitGroup(const std::vector<CompactItem*>& group, const Visit& visit) {
  std::shared_ptr<const InputMoments> moments;
  const CompactItem& first = *group.front();
  if (first.has_moments) {
    std::vector<float> h;
    RETURN_IF_ERROR(moments_->Load(first.moments_name, &h));
    Result<std::shared_ptr<const InputMoments>> prepared = InputMoments::Prepare(h, first.inputs());
    if (!prepared.ok()) return prepared.status().WithContext("moments of '" + first.source->name + "'");
    moments = *std::move(prepared);
  }
  const ParallelFor parallel = [&](size_t n, const std::function<void(size_t)>& task) {
    (void)lanes_.Run(n, [&](size_t i) {  // whose tasks neither fail nor throw
      task(i);
      return OkStatus();
    });
  };
  std::vector<float> delta, row_weights;
  std::vector<uint16_t> base;
  for (CompactItem* item : group) {
    RETURN_IF_ERROR(job_.Check());
    ASSIGN_OR_RETURN(item->finite, LoadDelta(*item, &delta, &base));
    if (!item->finite) continue;
    row_weights.clear();
    if (item->has_rows) RETURN_IF_ERROR(moments_->LoadRowWeights(item->source->name, &row_weights));
    CompactInput input{item->elems() / item->inputs(), item->inputs(), delta, moments.get(), row_weights, base};
    input.all_rows = item->transposed;
    input.parallel = &parallel;
    if (!item->analysis.estimates.empty()) input.energy = item->analysis.energy;
    RETURN_IF_ERROR(visit(*item, input).WithContext("tensor '" + item->source->name + "'"));
  }
  return OkStatus();
}

Status CompactCoder::ForEachDelta(const std::vector<CompactItem*>& items, const Visit& visit) {
  std::vector<std::vector<CompactItem*>> groups;
  std::map<std::pair<Hash128, uint64_t>, size_t> of_moments;
  for (CompactItem* item : items) {
    if (!item->has_moments) {
      groups.push_back({item});
      continue;
    }
    const auto [known, added] = of_moments.try_emplace({item->moments, item->inputs()}, groups.size());
    if (added) groups.emplace_back();
    groups[known->second].push_back(item);
  }
  const auto need_of = [&](const std::vector<CompactItem*>& group) {
    uint64_t need = 0;
    for (const CompactItem* item : group)
      need = std::max(need, MemoryFor(options_, item->rows, item->columns, item->has_moments, item->transposed));
    return need;
  };
  // A group that takes most of the memory has it alone, and all lanes for the panels of its tensors.
  std::vector<const std::vector<CompactItem*>*> others;
  for (const std::vector<CompactItem*>& group : groups) {
    if (need_of(group) <= memory_bytes_ / 2) {
      others.push_back(&group);
    } else {
      RETURN_IF_ERROR(Guarded([&] { return VisitGroup(group, visit); }));
    }
  }
  MemoryGate memory(memory_bytes_);
  return lanes_.Run(others.size(), [&](size_t g) -> Status {
    const uint64_t need = need_of(*others[g]);
    memory.Take(need);
    const Status status = Guarded([&] { return VisitGroup(*others[g], visit); });
    memory.GiveBack(need);
    return status;
  });
}

Result<CompactParts> CompactCoder::Nothing(const std::vector<CompactItem*>& items) {
  CompactParts parts;
  uint64_t elems = 0;
  for (const CompactItem* item : items) {
    CompactSegment& segment = parts.frame.segments.emplace_back();
    segment.rows = item->rows;
    segment.columns = item->columns;
    elems += item->elems();
  }
  RETURN_IF_ERROR(parts.frame.FinishLayout(elems));
  return parts;
}

Result<CompactParts> CompactCoder::Encode(const std::vector<CompactItem*>& items, const CompactParts* previous,
                                          const Sink& sink) {
  CompactParts parts;
  PartWriter factors(sink, Part::kPairs, &parts.factors);
  PartWriter narrow(sink, Part::kQuads, &parts.residual), wide(sink, Part::kPairs, &parts.residual);
  PartWriter scales(sink, Part::kScales, &parts.scales);
  const auto residual_writer = [&](const CompactSegment& segment) -> Result<PartWriter*> {
    // A view is in order: what the other kind of tokens has gathered comes first.
    RETURN_IF_ERROR((segment.wide_residual ? narrow : wide).Flush());
    return segment.wide_residual ? &wide : &narrow;
  };
  const auto copy = [&](size_t index) -> Status {
    RETURN_IF_ERROR(job_.Check());
    const CompactFrame& frame = previous->frame;
    const CompactSegment& from = frame.segments[index];
    const CompactSegment* next = index + 1 < frame.segments.size() ? &frame.segments[index + 1] : nullptr;
    RETURN_IF_ERROR(factors.AddStored(catalog_, previous->factors, from.first_factor_token,
                                      next != nullptr ? next->first_factor_token : frame.factor_tokens));
    ASSIGN_OR_RETURN(PartWriter * residual, residual_writer(from));
    RETURN_IF_ERROR(residual->AddStored(catalog_, previous->residual, from.first_residual_token,
                                        next != nullptr ? next->first_residual_token : frame.residual_tokens));
    return scales.AddStored(catalog_, previous->scales, from.first_scale,
                            next != nullptr ? next->first_scale : frame.scales);
  };
  uint64_t elems = 0;
  for (size_t begin = 0; begin < items.size();) {
    // A wave: its levels are in memory until they are written in order.
    size_t end = begin;
    uint64_t levels = 0;
    std::map<const CompactItem*, CompactTensor> encoded;
    std::vector<CompactItem*> wave;
    do {
      CompactItem* item = items[end++];
      if (previous != nullptr && item->is_encoded()) continue;
      levels += (item->rows + item->columns) * item->choice.rank + (HasResidual(item->choice) ? item->elems() : 0);
      encoded[item];
      wave.push_back(item);
    } while (end < items.size() && levels < kWaveLevels);
    const Visit visit = [&](CompactItem& item, const CompactInput& input) -> Status {
      CompactChoice choice = item.choice;
      if (item.transposed)
        choice.rank = static_cast<uint32_t>(std::min<uint64_t>(choice.rank, kMaxRightFactorLevels / item.columns));
      ASSIGN_OR_RETURN(CompactTensor tensor, EncodeTensor(input, choice));
      if (item.transposed) Transpose(&tensor);
      encoded.at(&item) = std::move(tensor);
      job_.Advance(item.source->bytes);
      return OkStatus();
    };
    RETURN_IF_ERROR(ForEachDelta(wave, visit));
    for (; begin < end; ++begin) {
      CompactItem& item = *items[begin];
      elems += item.elems();
      if (const auto made = encoded.find(&item); made == encoded.end()) {
        RETURN_IF_ERROR(copy(begin));
      } else {
        if (!item.finite)
          return SourceChanged(*item.file, "tensor '" + item.source->name + "' was finite when it was first read");
        const CompactTensor& tensor = made->second;
        item.encoded = item.choice;
        item.segment = tensor.segment;
        item.error = tensor.error;
        item.energy = tensor.energy;
        item.bytes = tensor.bytes;
        if (!HasFixedChoice(options_)) Learn(&item);
        factors.AddLevels(tensor.right);
        factors.AddLevels(tensor.left);
        ASSIGN_OR_RETURN(PartWriter * residual, residual_writer(tensor.segment));
        residual->AddLevels(tensor.residual);
        scales.AddValues(tensor.scales);
      }
      parts.frame.segments.push_back(item.segment);
      for (PartWriter* writer : {&factors, &narrow, &wide, &scales}) RETURN_IF_ERROR(writer->FlushWhenFull());
    }
  }
  for (PartWriter* writer : {&factors, &narrow, &wide, &scales}) RETURN_IF_ERROR(writer->Flush());
  RETURN_IF_ERROR(parts.frame.FinishLayout(elems));
  return parts;
}

}  // namespace modelstore
