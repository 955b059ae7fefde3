#include "catalog/write/base_choice.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "catalog/read/tensor_table.h"
#include "codec/decode/block_decoder.h"

namespace modelstore {
namespace {

constexpr size_t kMaxCandidates = 3;  // of which each costs decoding its blocks once
constexpr size_t kMaxExamined = 64;   // sketches near enough to look at their records
constexpr uint32_t kFarValue = 2048;  // distances beyond are equally far: 16 powers of two in bfloat16
// Measured on SmolLM2-135M and a full finetune of it: each of the 211 large tensors is 11 to 2,282 from its own base,
// and 43,000 to 98,500 from the other tensors of its shape.
constexpr uint32_t kFarSketch = 38'000;
constexpr size_t kWindowsPerTask = 64;

// Integer distance of mapped bfloat16 patterns follows the distance of their values (docs/format.md, "Coded
// values").
uint16_t Ordered(uint16_t pattern) {
  return static_cast<uint16_t>(pattern ^ (static_cast<uint16_t>(static_cast<int16_t>(pattern) >> 15) | 0x8000));
}

using Signs = SketchSigns;
using Ordered64 = std::array<uint16_t, kSketchValues>;

Ordered64 OrderedValues(const uint16_t* values) {
  Ordered64 ordered;
  std::transform(values, values + kSketchValues, ordered.begin(), Ordered);
  return ordered;
}

uint32_t Distance(const uint16_t* a, const uint16_t* b) {
  uint32_t sum = 0;
  for (size_t i = 0; i < kSketchValues; ++i) {
    const uint32_t d = a[i] > b[i] ? uint32_t{a[i]} - b[i] : uint32_t{b[i]} - a[i];
    sum += std::min(d, kFarValue);
  }
  return sum;
}

// Of each value, in order: its sign, and whether it is so large that one of another sign is far.
Signs SignsOf(const uint16_t* values) {
  Signs signs;
  for (size_t i = 0; i < kSketchValues; ++i) {
    signs.negative |= static_cast<uint64_t>(values[i] >> 15) << i;
    signs.large |= static_cast<uint64_t>((values[i] & 0x7fffu) >= kFarValue) << i;
  }
  return signs;
}

// Distance is at least this. Rules out 99.9 % of unrelated tensors at a twentieth of its cost: half of their signs
// differ, 19 are enough.
uint32_t LeastDistance(const Signs& a, const Signs& b) {
  return kFarValue * static_cast<uint32_t>(std::popcount((a.negative ^ b.negative) & (a.large | b.large)));
}

// A full sketch's record: version, dtype, shape; count and values.
constexpr size_t kSketchHeadBytes = 2;
constexpr size_t kSketchTailBytes = 1 + kSketchValues * sizeof(uint16_t);

// Of opening a tensor: it is no base, but must not keep a push from mending it.
bool IsLost(const Status& status) { return status.code() == StatusCode::kNotFound || IsDamage(status); }

bool MayHaveSketch(const std::vector<uint64_t>& shape) {
  uint64_t elems = 1;
  for (const uint64_t dim : shape) {
    // As many as fit 64 bits are many.
    if (__builtin_mul_overflow(elems, dim, &elems)) return true;
  }
  return elems >= kSketchMinElems;
}

// How `shape` can see a base of `base_shape`: element by element, or its first rows when only the number of rows
// differs (a resized vocabulary). 0: not at all.
uint64_t CommonElems(const std::vector<uint64_t>& shape, const std::vector<uint64_t>& base_shape, uint64_t elems,
                     uint64_t base_elems) {
  if (shape == base_shape) return elems;
  if (shape.size() < 2 || shape.size() != base_shape.size()) return 0;
  if (!std::equal(shape.begin() + 1, shape.end(), base_shape.begin() + 1)) return 0;
  return std::min(elems, base_elems);
}

// Of models that give equally much: a source before its variants, then the one with least besides, then the oldest. A
// folder that has each file twice, as the hub's cache does, is nobody's first choice.
const ModelRecord* Plainest(const std::vector<const ModelRecord*>& models) {
  const auto plainest = std::ranges::min_element(
      models, {}, [](const ModelRecord* model) { return std::tuple(model->derived, model->logical_bytes, model->id); });
  return plainest == models.end() ? nullptr : *plainest;
}

}  // namespace

BaseChooser::ShapeKey BaseChooser::KeyOf(const std::vector<uint64_t>& shape) {
  ByteWriter key;
  key.Varint(shape.size());
  for (const uint64_t dim : shape) key.Varint(dim);
  return ShapeKey(AsChars(key.view()));
}

Result<std::unique_ptr<BaseChooser>> BaseChooser::Load(Catalog& catalog, const PushOptions& options,
                                                       const std::vector<std::vector<uint64_t>>& shapes) {
  std::unique_ptr<BaseChooser> chooser(new BaseChooser(catalog, options.base));
  if (options.base == PushOptions::Base::kNone) return chooser;
  ASSIGN_OR_RETURN(chooser->models_, catalog.ListModels());
  RETURN_IF_ERROR(chooser->LeaveOut(options.not_against));
  if (options.base == PushOptions::Base::kNamed) {
    const auto named = std::find_if(chooser->models_.begin(), chooser->models_.end(),
                                    [&](const ModelRecord& model) { return model.name == options.base_name; });
    const auto missing = [&] {
      return NotFound("the base '" + options.base_name + "' is not in the store; see ls for the models that are");
    };
    if (named == chooser->models_.end()) return missing();
    if (options.may_use_as_base) {
      const Status allowed = options.may_use_as_base(*named);
      // Who may not see a model learns no more than who names one that is not there.
      if (allowed.code() == StatusCode::kNotFound) return missing();
      RETURN_IF_ERROR(allowed);
    }
    if (named->fidelity == Fidelity::kCompact)
      return InvalidArgument("the base '" + options.base_name +
                             "' is a compact model, which is nobody's base: name an exact one");
    RETURN_IF_ERROR(chooser->IndexModel(*named));
  }
  RETURN_IF_ERROR(chooser->LoadSketches(shapes));
  return chooser;
}

Status BaseChooser::LeaveOut(const std::string& name) {
  const auto left_out =
      std::find_if(models_.begin(), models_.end(), [&](const ModelRecord& model) { return model.name == name; });
  if (left_out == models_.end()) return OkStatus();
  for (const ModelFile& file : left_out->files) {
    ASSIGN_OR_RETURN(const FileRecord record, FileOf(file));
    for (const Extent& extent : record.extents) {
      if (extent.kind != Extent::Kind::kLiteral) left_out_.insert(extent.tensor);
    }
  }
  left_out_name_ = name;
  models_.erase(left_out);
  return OkStatus();
}

Status BaseChooser::LoadSketches(const std::vector<std::vector<uint64_t>>& shapes) {
  if (models_.empty()) return OkStatus();
  for (const auto& shape : shapes) {
    if (MayHaveSketch(shape)) sketches_.try_emplace(KeyOf(shape));
  }
  if (sketches_.empty()) return OkStatus();
  std::set<TensorId> allowed;
  for (const auto& [shape, tensors] : by_shape_) {
    for (const NamedTensor& tensor : tensors) allowed.insert(tensor.id);
  }
  return catalog_.store().Scan(Family::kSketches, "", [&](std::string_view key, ByteSpan value) -> Status {
    // The shape alone is looked at first: in a large store nearly all sketches are of another one. What this build
    // would not have written is passed over: a sketch is a hint, and verify tells of damaged ones.
    if (value.size() <= kSketchHeadBytes + kSketchTailBytes) return OkStatus();
    const size_t tail = value.size() - kSketchTailBytes;
    const auto group = sketches_.find(ShapeKey(AsChars(value.subspan(kSketchHeadBytes, tail - kSketchHeadBytes))));
    if (group == sketches_.end()) return OkStatus();
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(key));
    if (mode_ == PushOptions::Base::kNamed && !allowed.contains(id)) return OkStatus();
    if (left_out_.contains(id)) return OkStatus();
    if (value[0] != std::byte{1} || value[tail] != std::byte{kSketchValues}) return OkStatus();
    std::array<uint16_t, kSketchValues> values;
    std::memcpy(values.data(), value.data() + tail + 1, sizeof values);
    Sketches& sketches = group->second;
    sketches.ids.push_back(id);
    sketches.signs.push_back(SignsOf(values.data()));
    const Ordered64 ordered = OrderedValues(values.data());
    sketches.ordered.insert(sketches.ordered.end(), ordered.begin(), ordered.end());
    return OkStatus();
  });
}

Result<FileRecord> BaseChooser::FileOf(const ModelFile& file) const {
  ASSIGN_OR_RETURN(const StoredValue value, catalog_.store().Get(Family::kFiles, FileKey(file.sha256)));
  return ParseFileRecord(value.bytes());
}

Status BaseChooser::IndexModel(const ModelRecord& model) {
  elected_ = &model;
  for (const ModelFile& file : model.files) {
    ASSIGN_OR_RETURN(const FileRecord record, FileOf(file));
    if (record.kind != FileKind::kSafetensors) continue;
    for (const Extent& extent : record.extents) {
      if (extent.kind != Extent::Kind::kTensor || extent.name.empty() || extent.bytes == 0) continue;
      const Result<TensorRef> tensor = catalog_.reader().OpenTensorById(extent.tensor);
      if (IsLost(tensor.status())) continue;
      RETURN_IF_ERROR(tensor.status());
      by_shape_[KeyOf((*tensor)->record.shape)].push_back({extent.tensor, extent.name});
      by_name_.emplace(extent.name, extent.tensor);
    }
  }
  return OkStatus();
}

Status BaseChooser::AddCandidate(const SourceExtent& extent, const TensorId& id,
                                 std::vector<BaseCandidate>* candidates) {
  Result<TensorRef> opened = catalog_.reader().OpenTensorById(id);
  if (IsLost(opened.status())) return OkStatus();
  RETURN_IF_ERROR(opened.status());
  TensorRef base = *std::move(opened);
  if (!base->record.encoding().may_be_base) return OkStatus();
  if (base->record.depth > 0 && !base->record.is_computed()) {
    // One hop only: what the nearest is stored against is nearly as near. A copy: `base` is what holds the view.
    const View& view = base->record.ViewOf(InputRole::kBase);
    const ViewSegment first = view.empty() ? ViewSegment{} : view[0];
    if (first.elems == 0 || first.kind != ViewSegment::Kind::kIdentity || first.base_offset_elems != 0)
      return OkStatus();
    ASSIGN_OR_RETURN(base, catalog_.reader().OpenTensorById(first.base));
    if (base->record.depth > 0 && !base->record.is_computed()) return OkStatus();
  }
  if (base->record.depth >= kMaxDepth) return OkStatus();
  const TensorRecord& record = base->record;
  const uint64_t elems = extent.elems();
  if (!DTypeIsFloat(extent.dtype) || !DTypeIsFloat(record.dtype) || !CanPredict(record.dtype, extent.dtype))
    return OkStatus();
  const uint64_t common = CommonElems(extent.shape, record.shape, elems, record.bytes / DTypeBytes(record.dtype));
  if (common == 0) return OkStatus();
  for (const BaseCandidate& candidate : *candidates) {
    if (candidate.base->id == base->id) return OkStatus();
  }
  BaseCandidate candidate;
  candidate.view.push_back({ViewSegment::Kind::kIdentity, common, base->id, 0});
  if (common < elems) candidate.view.push_back({ViewSegment::Kind::kNone, elems - common, TensorId{}, 0});
  candidate.base = std::move(base);
  candidates->push_back(std::move(candidate));
  return OkStatus();
}

Result<std::vector<BaseCandidate>> BaseChooser::ByContent(const SourceExtent& extent, const SketchRecord& sketch) {
  std::vector<BaseCandidate> candidates;
  const auto stored = sketches_.find(KeyOf(extent.shape));
  if (stored == sketches_.end()) return candidates;
  const Sketches& sketches = stored->second;
  const Ordered64 ordered = OrderedValues(sketch.values.data());
  const Signs signs = SignsOf(sketch.values.data());
  std::vector<std::pair<uint32_t, TensorId>> near;
  for (size_t i = 0; i < sketches.ids.size(); ++i) {
    if (LeastDistance(signs, sketches.signs[i]) >= kFarSketch) continue;
    const uint32_t distance = Distance(ordered.data(), &sketches.ordered[i * kSketchValues]);
    if (distance < kFarSketch) near.emplace_back(distance, sketches.ids[i]);
  }
  const size_t examined = std::min(near.size(), kMaxExamined);
  std::partial_sort(near.begin(), near.begin() + static_cast<ptrdiff_t>(examined), near.end());
  for (size_t i = 0; i < examined && candidates.size() < kMaxCandidates; ++i) {
    // Clearly farther than the nearest: not worth decoding.
    if (near[i].first > near[0].first * 2 + kSketchValues) break;
    RETURN_IF_ERROR(AddCandidate(extent, near[i].second, &candidates));
  }
  return candidates;
}

Result<std::vector<BaseCandidate>> BaseChooser::ByModel(const SourceExtent& extent, size_t position) {
  std::vector<BaseCandidate> candidates;
  if (elected_ == nullptr) return candidates;
  if (const auto named = by_name_.find(extent.name); named != by_name_.end())
    RETURN_IF_ERROR(AddCandidate(extent, named->second, &candidates));
  if (!candidates.empty()) return candidates;
  const auto shaped = by_shape_.find(KeyOf(extent.shape));
  if (shaped != by_shape_.end() && position < shaped->second.size())
    RETURN_IF_ERROR(AddCandidate(extent, shaped->second[position].id, &candidates));
  return candidates;
}

Status BaseChooser::ReadSample(const BaseCandidate& candidate, const SourceExtent& extent, Buffer* out) {
  const uint64_t elems = extent.elems();
  const uint32_t width = DTypeBytes(candidate.base->record.dtype);
  const uint64_t common = candidate.view[0].elems;
  const MutableByteSpan sample = out->Resize(SampleElems(elems) * width);
  const uint64_t windows = SampleWindowCount(elems);
  // All windows but the last are as long as the first.
  const uint64_t window_bytes = SampleWindowElems(elems, 0) * width;
  const size_t tasks = (windows + kWindowsPerTask - 1) / kWindowsPerTask;
  return catalog_.pool().ParallelFor(tasks, [&](size_t task) -> Status {
    const uint64_t end = std::min<uint64_t>((task + 1) * kWindowsPerTask, windows);
    for (uint64_t w = task * kWindowsPerTask; w < end; ++w) {
      const uint64_t begin = SampleWindowBegin(elems, w);
      const MutableByteSpan window = sample.subspan(w * window_bytes, SampleWindowElems(elems, w) * width);
      const uint64_t covered = begin < common ? std::min<uint64_t>(common - begin, window.size() / width) : 0;
      if (covered > 0)
        RETURN_IF_ERROR(catalog_.reader().ReadTensor(candidate.base, begin * width, window.first(covered * width)));
      const MutableByteSpan rest = window.subspan(covered * width);
      std::fill(rest.begin(), rest.end(), std::byte{0});
    }
    return OkStatus();
  });
}

Result<BaseChoice> BaseChooser::Choose(const TensorData& data, const std::vector<BaseCandidate>& candidates) {
  const SourceExtent& extent = data.extent();
  const uint64_t elems = extent.elems();
  const uint32_t width = DTypeBytes(extent.dtype);
  // Only floating-point types are planned from a sample.
  if (!DTypeIsFloat(extent.dtype)) return BaseChoice{PlanTensor(extent.dtype, elems, {}, DType::kOpaque, {}), {}};
  Buffer sample_buffer, scratch;
  const MutableByteSpan sample = sample_buffer.Resize(SampleElems(elems) * width);
  size_t filled = 0;
  for (uint64_t w = 0; w < SampleWindowCount(elems); ++w) {
    ASSIGN_OR_RETURN(const ByteSpan window,
                     data.Read(SampleWindowBegin(elems, w) * width, SampleWindowElems(elems, w) * width, &scratch));
    std::copy(window.begin(), window.end(), sample.begin() + filled);
    filled += window.size();
  }
  BaseChoice best;
  best.plan = PlanTensor(extent.dtype, elems, sample, DType::kOpaque, {});
  uint64_t best_bytes = best.plan.estimated_bytes;
  Buffer base_sample;
  for (const BaseCandidate& candidate : candidates) {
    RETURN_IF_ERROR(ReadSample(candidate, extent, &base_sample));
    const EncodePlan plan = PlanTensor(extent.dtype, elems, sample, candidate.base->record.dtype, base_sample.span());
    if (plan.encoding != Encoding::kDelta || plan.estimated_bytes + kDeltaRecordBytes >= best_bytes) continue;
    best_bytes = plan.estimated_bytes + kDeltaRecordBytes;
    best.plan = plan;
    best.view = candidate.view;
  }
  return best;
}

void BaseChooser::Vote(const TensorId& id, uint64_t bytes) {
  const MutexLock lock(votes_mutex_);
  votes_[id] += bytes;
}

void BaseChooser::CountBase(const TensorId& id, uint64_t bytes) {
  const MutexLock lock(votes_mutex_);
  base_bytes_[id] += bytes;
}

Result<std::vector<const ModelRecord*>> BaseChooser::HoldersOf(const std::map<TensorId, uint64_t>& weights) {
  std::vector<const ModelRecord*> best;
  if (weights.empty() || !may_use_bases()) return best;
  if (usage_ == nullptr) {
    ASSIGN_OR_RETURN(const auto snapshot, catalog_.store().Snapshot());
    ASSIGN_OR_RETURN(StoreUsage usage, StoreUsage::Load(*snapshot));
    usage_ = std::make_unique<StoreUsage>(std::move(usage));
  }
  std::vector<uint64_t> bytes_of(usage_->tensor_costs().size());
  for (const auto& [id, bytes] : weights) {
    if (const uint32_t index = usage_->FindTensor(id); index != StoreUsage::kMissing) bytes_of[index] += bytes;
  }
  uint64_t best_bytes = 0;
  std::vector<uint32_t> counted_for(bytes_of.size(), StoreUsage::kMissing);
  for (uint32_t m = 0; m < usage_->models().size(); ++m) {
    if (usage_->models()[m].record.fidelity == Fidelity::kCompact) continue;
    uint64_t bytes = 0;
    for (const uint32_t file : usage_->models()[m].files) {
      if (file == StoreUsage::kMissing) continue;
      for (const StoreUsage::HeldTensor& held : usage_->TensorsOf(usage_->files()[file])) {
        if (bytes_of[held.tensor] != 0 && std::exchange(counted_for[held.tensor], m) != m)
          bytes += bytes_of[held.tensor];
      }
    }
    const ModelRecord& model = usage_->models()[m].record;
    if (model.name == left_out_name_) continue;
    if (bytes == 0 || bytes < best_bytes) continue;
    if (bytes > best_bytes) best.clear();
    best.push_back(&model);
    best_bytes = bytes;
  }
  return best;
}

Result<const ModelRecord*> BaseChooser::NamesakeOf(const std::vector<const SourceExtent*>& tensors,
                                                   const std::vector<const ModelRecord*>& models) const {
  std::map<std::string_view, uint64_t> named;
  for (const SourceExtent* tensor : tensors) named.emplace(tensor->name, tensor->elems());
  const ModelRecord* best = nullptr;
  size_t most = 0, fewest = 0;
  for (const ModelRecord* model : models) {
    size_t matches = 0, all = 0;
    for (const ModelFile& file : model->files) {
      ASSIGN_OR_RETURN(const FileRecord record, FileOf(file));
      for (const Extent& extent : record.extents) {
        if (extent.name.empty()) continue;
        const auto it = named.find(extent.name);
        matches += it != named.end() && it->second > 0 && extent.bytes % it->second == 0;
        ++all;
      }
    }
    if (matches < most || matches == 0) continue;
    if (matches > most || all < fewest || (all == fewest && model->id < best->id)) {
      best = model;
      most = matches;
      fewest = all;
    }
  }
  return best;
}

Status BaseChooser::Elect(const std::vector<const SourceExtent*>& tensors) {
  if (elected_ != nullptr || tensors.empty() || !may_use_bases()) return OkStatus();
  const std::map<TensorId, uint64_t> votes = [&] {
    const MutexLock lock(votes_mutex_);
    return votes_;
  }();
  ASSIGN_OR_RETURN(std::vector<const ModelRecord*> candidates, HoldersOf(votes));
  if (candidates.size() == 1) return IndexModel(*candidates.front());
  const bool have_sketches = std::any_of(tensors.begin(), tensors.end(), [](const SourceExtent* tensor) {
    return DTypeIsFloat(tensor->dtype) && tensor->elems() >= kSketchMinElems;
  });
  if (candidates.empty() && !have_sketches) {
    for (const ModelRecord& model : models_) {
      if (model.fidelity != Fidelity::kCompact) candidates.push_back(&model);
    }
  }
  const ModelRecord* plainest = Plainest(candidates);
  ASSIGN_OR_RETURN(const ModelRecord* elected, NamesakeOf(tensors, candidates));
  if (elected == nullptr && !votes.empty()) elected = plainest;
  return elected == nullptr ? OkStatus() : IndexModel(*elected);
}

Result<const ModelRecord*> BaseChooser::BaseModel() {
  const std::map<TensorId, uint64_t> base_bytes = [&] {
    const MutexLock lock(votes_mutex_);
    return base_bytes_;
  }();
  ASSIGN_OR_RETURN(const std::vector<const ModelRecord*> holders, HoldersOf(base_bytes));
  return Plainest(holders);
}

}  // namespace modelstore
