// The compact part of a push (push_job.h): which tensors, what of them, and the files that they make.
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "catalog/write/push_job.h"
#include "codec/decode/block_decoder.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

// Smaller tensors cannot save what a segment costs.
constexpr uint64_t kMinCompactElems = 4096;
// What a bundle holds of one dtype at most: it is made in memory.
constexpr uint64_t kMaxBundleBytes = 8 << 20;
constexpr uint64_t kMaxBundledBytes = 1 << 20;
constexpr uint64_t kHashWindowBytes = 4 << 20;
// Plans estimate; what they give is measured, and the next plan knows it. Each leaves a little more room than the one
// before. In the first rounds a plan that leaves much of the budget is made again, too.
constexpr double kRoomOfRound = 0.001;
constexpr double kUnspent = 0.004;
constexpr int kSpendingRounds = 3;
constexpr int kMaxRounds = 10;
// Memory of a push besides what encoding takes, of a large one and at least.
constexpr uint64_t kReserveBytes = CompactCoder::kPartBytes + (32 << 20);
constexpr uint64_t kMinReserveBytes = 4 << 20;

bool IsFloatTensor(const SourceExtent& extent) {
  return DTypeIsFloat(extent.dtype) && !extent.name.empty() && !extent.is_literal() && extent.bytes > 0;
}

bool MayBeCompact(const SourceExtent& extent) {
  return IsFloatTensor(extent) && extent.shape.size() >= 2 && extent.elems() >= kMinCompactElems;
}

// The candidate that predicts every element from a base's first on.
const BaseCandidate* Whole(const std::vector<BaseCandidate>& candidates, uint64_t elems) {
  for (const BaseCandidate& candidate : candidates) {
    const ViewSegment& first = candidate.view.front();
    if (candidate.view.size() == 1 && first.elems == elems && first.base_offset_elems == 0) return &candidate;
  }
  return nullptr;
}

// Of content in memory: what PlanTensor looks at.
Bytes Sample(ByteSpan content, const SourceExtent& extent) {
  Bytes out;
  const uint32_t width = DTypeBytes(extent.dtype);
  for (uint64_t w = 0; w < SampleWindowCount(extent.elems()); ++w) {
    const ByteSpan window =
        content.subspan(SampleWindowBegin(extent.elems(), w) * width, SampleWindowElems(extent.elems(), w) * width);
    out.insert(out.end(), window.begin(), window.end());
  }
  return out;
}

std::string Ratio(double ratio) {
  char text[32];
  return std::string(text, static_cast<size_t>(std::snprintf(text, sizeof text, "%.4g", ratio)));
}

// "'a', 'b' and 7 others".
std::string Names(const std::vector<std::string>& names) {
  std::string list;
  for (size_t i = 0; i < std::min<size_t>(names.size(), 3); ++i) list += (i == 0 ? "'" : ", '") + names[i] + "'";
  return names.size() <= 3 ? list : list + " and " + std::to_string(names.size() - 3) + " others";
}

}  // namespace

uint64_t PushJob::ReserveBytes() const { return std::min(kReserveBytes, kMinReserveBytes + 2 * source_.total_bytes()); }

Result<uint64_t> PushJob::CompactNeed() {
  uint64_t need = 0;
  std::string largest;
  std::optional<MomentsFile> moments;
  if (options_.compact->moments != nullptr) {
    ASSIGN_OR_RETURN(moments, MomentsFile::Open(options_.compact->moments->files().front()));
  }
  for (const SourceFile& source : source_.files()) {
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(source));
    JobControl quiet;  // Plan warns
    ASSIGN_OR_RETURN(const FileLayout layout, LayOutFile(reader, quiet));
    for (const SourceExtent& extent : layout.extents) {
      if (!MayBeCompact(extent)) continue;
      const uint64_t columns = extent.shape.back(), rows = extent.elems() / columns;
      const auto [has_moments, transposed] =
          CompactCoder::MomentsOf(*options_.compact, moments ? &*moments : nullptr, extent);
      const uint64_t own = CompactCoder::MemoryFor(*options_.compact, rows, columns, has_moments, transposed);
      if (own <= need) continue;
      need = own;
      largest = extent.name;
    }
  }
  need += ReserveBytes();
  const uint64_t budget = catalog_.push_memory().budget_bytes();
  if (need <= budget) return need;
  return ResourceExhausted("making '" + options_.name + "' compact takes " + Megabytes(need) +
                           " of memory for tensor '" + largest + "', pushes have " + Megabytes(budget) +
                           "; give a larger --memory-budget");
}

Status PushJob::FindBases(std::vector<PlannedExtent*>* large, std::vector<PlannedExtent*>* small) {
  const bool is_named = options_.base == PushOptions::Base::kNamed;
  std::vector<const BaseCandidate*> none;
  std::vector<std::optional<BaseCandidate>> found(large->size());
  const auto by_content = [&](size_t i) -> Status {
    RETURN_IF_ERROR(job_.Check());
    const PlannedExtent& extent = *(*large)[i];
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extent.file->source));
    Buffer hold;
    ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, extent.source, 0, &hold));
    ASSIGN_OR_RETURN(const std::optional<SketchRecord> sketch, MakeSketch(data));
    std::vector<BaseCandidate> candidates;
    if (is_named) {
      ASSIGN_OR_RETURN(candidates, bases_->ByModel(extent.source, extent.position));
    }
    if (candidates.empty() && sketch) {
      ASSIGN_OR_RETURN(candidates, bases_->ByContent(extent.source, *sketch));
    }
    const BaseCandidate* whole = Whole(candidates, extent.source.elems());
    if (whole == nullptr) return OkStatus();
    found[i] = *whole;
    bases_->Vote(whole->base->id, extent.source.bytes);
    return OkStatus();
  };
  RETURN_IF_ERROR(lanes_->Run(large->size(), by_content));
  // What has no sketch looks into the model that gives the others most.
  std::vector<const SourceExtent*> others;
  for (size_t i = 0; i < large->size(); ++i) {
    if (!found[i]) others.push_back(&(*large)[i]->source);
  }
  for (const PlannedExtent* extent : *small) others.push_back(&extent->source);
  RETURN_IF_ERROR(GoOnDespite(bases_->Elect(others)));
  for (size_t i = 0; i < large->size(); ++i) {
    PlannedExtent& extent = *(*large)[i];
    if (!found[i]) {
      ASSIGN_OR_RETURN(const std::vector<BaseCandidate> candidates, bases_->ByModel(extent.source, extent.position));
      const BaseCandidate* whole = Whole(candidates, extent.source.elems());
      if (whole == nullptr) continue;
      found[i] = *whole;
    }
    CompactItem& item = items_.emplace_back();
    item.file = extent.file->source;
    item.source = &extent.source;
    item.columns = extent.source.shape.back();
    item.rows = extent.source.elems() / item.columns;
    item.base = found[i]->base->id;
    item_extents_.push_back(&extent);
  }
  return OkStatus();
}

Status PushJob::SelectCompact() {
  std::vector<PlannedExtent*> large, small;
  for (PlannedFile& file : files_) {
    for (PlannedExtent& extent : file.extents) {
      if (MayBeCompact(extent.source)) {
        large.push_back(&extent);
      } else if (IsFloatTensor(extent.source) && extent.source.bytes <= kMaxBundledBytes) {
        small.push_back(&extent);
      }
    }
  }
  if (bases_->may_use_bases()) RETURN_IF_ERROR(FindBases(&large, &small));
  if (items_.empty())
    return Unsupported("'" + options_.name + "' has no base in the store for any of its " +
                       std::to_string(large.size()) +
                       " large tensors: only a finetune whose base is stored can be made compact; push the base first" +
                       ", name it with --base, or push exactly");
  coder_ = std::make_unique<CompactCoder>(catalog_, *options_.compact, *lanes_,
                                          memory_.bytes() - std::min(memory_.bytes(), ReserveBytes()), job_);
  RETURN_IF_ERROR(coder_->Examine(&items_));

  std::vector<std::string> not_finite, without_base;
  size_t kept = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    if (!items_[i].finite) {
      not_finite.push_back(items_[i].source->name);
      continue;
    }
    PlannedExtent& extent = *item_extents_[i];
    extent.is_part = true;
    extent.file->has_parts = true;
    bases_->Vote(items_[i].base, extent.source.bytes);
    bases_->CountBase(items_[i].base, extent.source.bytes);
    std::swap(items_[kept], items_[i]);
    std::swap(item_extents_[kept++], item_extents_[i]);
  }
  items_.resize(kept);
  item_extents_.resize(kept);
  for (const PlannedExtent* extent : large) {
    const bool listed = std::find(not_finite.begin(), not_finite.end(), extent->source.name) != not_finite.end();
    if (!extent->is_part && !listed) without_base.push_back(extent->source.name);
  }
  if (!not_finite.empty())
    job_.Warn("not all values of " + Names(not_finite) +
              " and of their bases are finite and below 2^56; stored exactly");
  if (!without_base.empty()) job_.Warn(Names(without_base) + ": no base of the same shape; stored exactly");
  if (items_.empty()) return Unsupported("'" + options_.name + "' has no tensor left that could be made compact");
  std::erase_if(small, [](const PlannedExtent* extent) { return !extent->file->has_parts; });
  small_ = std::move(small);
  for (PlannedExtent* extent : small_) extent->is_part = true;
  return OkStatus();
}

Status PushJob::EncodeCompact() {
  RETURN_IF_ERROR(MakeBundles(small_));
  const CompactOptions& compact = *options_.compact;
  for (size_t i = 0; i < items_.size(); ++i) compact_[items_[i].source->dtype].members.push_back(i);
  const double logical = static_cast<double>(source_.total_bytes());
  const bool is_fixed = CompactCoder::HasFixedChoice(compact);
  const double target = compact.target_ratio ? logical / *compact.target_ratio : 0;
  const double limit = compact.max_drift ? *compact.max_drift : kDefaultMaxDrift;
  const bool is_limited = compact.max_drift || (!is_fixed && !compact.target_ratio);
  const auto too_large = [&](double stored) {
    return Unsupported("a ratio of " + Ratio(*compact.target_ratio) + " cannot be reached for '" + options_.name +
                       "': what comes nearest takes " + Megabytes(static_cast<uint64_t>(stored)) + ", a ratio of " +
                       Ratio(logical / stored));
  };
  const auto too_far = [&](const std::string& why) {
    exceeds_drift_ = true;
    return Unsupported("'" + options_.name + "' cannot be stored with a drift of " + Ratio(limit) + " or less" + why);
  };
  double others = 0;  // bytes besides the tokens
  if (compact.target_ratio) {
    RETURN_IF_ERROR(MakeCompact(/*nothing=*/true));
    ASSIGN_OR_RETURN(const uint64_t measured, MeasureAdded());
    others = static_cast<double>(measured);
    if (others > target) return too_large(others);
  }
  std::optional<std::vector<CompactChoice>> fitting;  // the last plan that kept the ratio
  for (int round = 1;; ++round) {
    const double room = 1 - kRoomOfRound * round;
    if (round > kMaxRounds) {
      for (size_t i = 0; i < items_.size(); ++i) items_[i].choice = (*fitting)[i];  // `pick` serves no further plan
    } else if (compact.target_ratio) {
      RETURN_IF_ERROR(coder_->PlanBytes(&items_, std::max(0.0, target * room - others), round > 1));
    } else if (!is_fixed) {
      if (const Status planned = coder_->PlanDrift(&items_, limit * room, round > 1); !planned.ok())
        return planned.code() == StatusCode::kUnsupported ? too_far(": " + std::string(planned.message())) : planned;
    }
    // A plan that changes nothing is the last one: what it gives is known.
    if (round > 1 && round < kMaxRounds && std::ranges::all_of(items_, &CompactItem::is_encoded)) {
      round = kMaxRounds;
    } else {
      RETURN_IF_ERROR(MakeCompact(/*nothing=*/false));
    }
    const bool may_retry = !is_fixed && round < kMaxRounds;
    if (compact.target_ratio) {
      ASSIGN_OR_RETURN(const uint64_t measured, MeasureAdded());
      const double stored = static_cast<double>(measured), unspent = 1 - stored / target;
      others = stored - CompactCoder::BytesOf(items_);
      if (unspent >= 0) {
        fitting.emplace();
        for (const CompactItem& item : items_) fitting->push_back(item.choice);
      }
      if (unspent < 0 ? may_retry || (fitting && round == kMaxRounds) : unspent > kUnspent && round <= kSpendingRounds)
        continue;
      if (unspent < 0) return too_large(stored);
    }
    const double drift = CompactCoder::DriftOf(items_);
    if (!is_limited || drift <= limit) break;
    if (compact.target_ratio || !may_retry)
      return too_far((compact.target_ratio ? ": at that ratio it is " : ": it is ") + Ratio(drift));
  }
  RETURN_IF_ERROR(FinishCompact());
  return CheckSources();
}

Status PushJob::MakeCompact(bool nothing) {
  uint64_t bytes = 0;
  for (const CompactItem& item : items_) {
    if (!item.is_encoded()) bytes += item.source->bytes;
  }
  if (!nothing) job_.Begin("making compact", bytes);
  const CompactCoder::Sink sink = [&](ByteSpan content, CompactCoder::Part part) -> Result<TensorId> {
    RETURN_IF_ERROR(job_.Check());
    SourceExtent extent;
    extent.bytes = content.size();
    extent.dtype = part == CompactCoder::Part::kScales ? DType::kBF16 : DType::kU16;
    extent.shape = {extent.elems()};
    extent.name = "parts of compact tensors";
    BaseChoice choice;
    if (part == CompactCoder::Part::kScales) {
      ASSIGN_OR_RETURN(choice, bases_->Choose(TensorData::Over(extent, content), {}));
    } else {
      choice.plan = TokenPlan(extent.elems(), Sample(content, extent));
    }
    return StoreDerived(content, extent, choice);
  };
  for (auto& [dtype, group] : compact_) {
    std::vector<CompactItem*> items;
    for (const size_t i : group.members) items.push_back(&items_[i]);
    CompactParts parts;
    if (nothing) {
      ASSIGN_OR_RETURN(parts, CompactCoder::Nothing(items));
    } else {
      ASSIGN_OR_RETURN(parts, coder_->Encode(items, group.parts ? &*group.parts : nullptr, sink));
      group.parts = parts;
    }

    TensorRecord record;
    record.dtype = dtype;
    record.push = push_;
    record.depth = 1;
    uint64_t elems = 0;
    ByteWriter seed;
    for (const size_t i : group.members) {
      PlannedExtent& extent = *item_extents_[i];
      extent.part_offset = elems * DTypeBytes(dtype);
      record.MutableViewOf(InputRole::kBase)
          .push_back({ViewSegment::Kind::kIdentity, items_[i].elems(), items_[i].base, 0});
      ASSIGN_OR_RETURN(const TensorRef base, catalog_.reader().OpenTensorById(items_[i].base));
      record.depth = std::max<uint8_t>(record.depth, base->record.depth + 1);
      elems += items_[i].elems();
      seed.String(extent.source.name);
    }
    // Two finetunes of one architecture differ in these, and so in their dither. Not their ordinals: content that is
    // stored again because it was damaged is the same content.
    for (const std::vector<ViewSegment>* view : {&parts.factors, &parts.residual, &parts.scales}) {
      for (const ViewSegment& segment : *view) {
        seed.U64(segment.base.hash.low);
        seed.U64(segment.base.hash.high);
      }
    }
    parts.frame.seed = static_cast<uint32_t>(Checksum64(seed.view()));
    Frame frame;
    frame.encoding = Encoding::kCompact;
    frame.dtype = frame.coded_dtype = dtype;
    frame.elems = elems;
    frame.block_elems = kBlockBytes / DTypeBytes(dtype);
    frame.compact = std::make_shared<const CompactFrame>(std::move(parts.frame));
    record.shape = {elems};
    record.bytes = elems * DTypeBytes(dtype);
    record.frame = SerializeFrame(frame);
    record.MutableViewOf(InputRole::kFactors) = std::move(parts.factors);
    record.MutableViewOf(InputRole::kResidual) = std::move(parts.residual);
    record.MutableViewOf(InputRole::kScales) = std::move(parts.scales);

    NewTensor made;
    made.id = {HashBytes(record.frame), 0};
    made.record = std::move(record);
    made.derived = true;
    group.made = new_tensors_.Add(std::move(made));
    for (const size_t i : group.members) item_extents_[i]->made = group.made;
  }
  return OkStatus();
}

Status PushJob::FinishCompact() {
  for (auto& [dtype, group] : compact_) {
    NewTensor& made = *group.made;
    job_.Begin("rebuilding", made.record.bytes);
    ASSIGN_OR_RETURN(made.id.hash, writer_->HashStored(made.record));
    ASSIGN_OR_RETURN(const TensorRef own, catalog_.reader().OpenUnpublished(made.id, made.record));
    std::vector<TensorId> ids;
    RETURN_IF_ERROR(StoredOfHash(made.id.hash, &ids));
    for (const TensorId& id : ids) {
      const auto compare = [&]() -> Result<bool> {
        ASSIGN_OR_RETURN(const TensorRef other, catalog_.reader().OpenTensorById(id));
        return SameContent(own, other);
      };
      const Result<bool> equal = compare();
      // A damaged tensor equals nothing: pushing its content again stores it again.
      if (!equal.ok() && equal.status().code() != StatusCode::kCorruption) return equal.status();
      if (!equal.ok() || !*equal) continue;
      for (const size_t i : group.members) {
        item_extents_[i]->stored = id;
        item_extents_[i]->made = nullptr;
      }
      break;
    }
    if (item_extents_[group.members.front()]->stored) continue;
    ASSIGN_OR_RETURN(made.id.ordinal, AllotOrdinal(made.id.hash, ids.empty() ? 0 : ids.back().ordinal + 1u));
    RETURN_IF_ERROR(Introduce(&made));
  }
  return OkStatus();
}

Result<bool> PushJob::SameContent(const TensorRef& a, const TensorRef& b) {
  if (a->record.dtype != b->record.dtype || a->record.shape != b->record.shape ||
      a->frame.block_elems != b->frame.block_elems)
    return false;
  std::atomic<bool> equal{true};
  const auto compare = [&](size_t block) -> Status {
    if (!equal) return OkStatus();
    RETURN_IF_ERROR(job_.Check());
    const uint32_t index = static_cast<uint32_t>(block);
    BufferPool::Lease copy(scratches_);
    {
      // Nobody may wait for memory while holding a block.
      ASSIGN_OR_RETURN(const BlockRef first, catalog_.reader().ReadBlock(a, index, /*keep=*/false));
      std::copy(first.bytes().begin(), first.bytes().end(), copy->Resize(first.bytes().size()).begin());
    }
    ASSIGN_OR_RETURN(const BlockRef second, catalog_.reader().ReadBlock(b, index, /*keep=*/false));
    if (!SameBytes(copy.get()->span(), second.bytes())) equal = false;
    return OkStatus();
  };
  RETURN_IF_ERROR(lanes_->Run(a->frame.BlockCount(), compare));
  return equal.load();
}

Status PushJob::MakeBundles(const std::vector<PlannedExtent*>& small) {
  std::map<DType, std::vector<PlannedExtent*>> by_dtype;
  for (PlannedExtent* extent : small) by_dtype[extent->source.dtype].push_back(extent);
  for (const auto& [dtype, extents] : by_dtype) {
    std::vector<PlannedExtent*> bundle;
    uint64_t bytes = 0;
    for (PlannedExtent* extent : extents) {
      if (bytes + extent->source.bytes > kMaxBundleBytes) {
        RETURN_IF_ERROR(MakeBundle(bundle));
        bundle.clear();
        bytes = 0;
      }
      bundle.push_back(extent);
      bytes += extent->source.bytes;
    }
    RETURN_IF_ERROR(MakeBundle(bundle));
  }
  return OkStatus();
}

// Each small tensor as a delta of its own would cost more in records than in blocks.
Status PushJob::MakeBundle(const std::vector<PlannedExtent*>& extents) {
  if (extents.empty()) return OkStatus();
  SourceExtent whole;
  whole.dtype = extents.front()->source.dtype;
  whole.name = "small tensors";
  Bytes content;
  BaseChoice choice;
  for (PlannedExtent* extent : extents) {
    const SourceExtent& source = extent->source;
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extent->file->source));
    extent->part_offset = content.size();
    content.resize(content.size() + source.bytes);
    RETURN_IF_ERROR(reader.ReadAt(source.begin, MutableByteSpan(content).last(source.bytes)));
    ASSIGN_OR_RETURN(const std::vector<BaseCandidate> candidates, bases_->ByModel(source, extent->position));
    const BaseCandidate* base = Whole(candidates, source.elems());
    if (base == nullptr) {
      choice.view.push_back({ViewSegment::Kind::kNone, source.elems(), TensorId{}, 0});
    } else {
      choice.view.push_back(base->view.front());
      bases_->CountBase(base->base->id, source.bytes);
    }
  }
  whole.bytes = content.size();
  whole.shape = {whole.elems()};
  Bytes prediction(content.size());
  RETURN_IF_ERROR(catalog_.reader().ReadPrediction(choice.view, whole.dtype, 0, prediction));
  choice.plan = PlanTensor(whole.dtype, whole.elems(), Sample(content, whole), whole.dtype, Sample(prediction, whole));
  ASSIGN_OR_RETURN(const TensorId id, StoreDerived(content, whole, choice));
  NewTensor* made = nullptr;
  for (NewTensor& tensor : new_tensors_) {
    if (tensor.derived && tensor.id == id) made = &tensor;
  }
  for (PlannedExtent* extent : extents) {
    extent->made = made;
    if (made == nullptr) extent->stored = id;
  }
  return OkStatus();
}

Result<TensorId> PushJob::StoreDerived(ByteSpan content, const SourceExtent& extent, const BaseChoice& choice) {
  const TensorData data = TensorData::Over(extent, content);
  Hasher128 hasher = StartTensorHash(extent.dtype, extent.shape);
  hasher.Update(content);
  PlannedExtent planned;
  planned.source = extent;
  planned.hash = hasher.Finish();
  // An earlier round of planning may have made it already.
  for (const NewTensor& tensor : new_tensors_) {
    if (!tensor.derived || tensor.id.hash != planned.hash || tensor.introduced == nullptr) continue;
    ASSIGN_OR_RETURN(const bool equal, EqualsTensor(data, tensor.introduced));
    if (equal) return tensor.id;
  }
  PlannedFile none;
  planned.file = &none;
  SourceFile unnamed;
  unnamed.shown_as = options_.name;
  none.source = &unnamed;
  ASSIGN_OR_RETURN(const bool identical, FindIdentical(data, planned));
  if (identical) return *planned.stored;
  const uint64_t blocks = BlocksFor(extent.bytes);
  if (next_block_ + blocks > UINT32_MAX)
    return ResourceExhausted("'" + options_.name + "' takes more blocks than a push may have");
  ASSIGN_OR_RETURN(TensorRecord record, writer_->Store(data, choice, static_cast<uint32_t>(next_block_), nullptr));
  next_block_ += blocks;
  const TensorId id{planned.hash, planned.ordinal};
  RETURN_IF_ERROR(AddDerived(id, std::move(record)).status());
  return id;
}

Result<PushJob::NewTensor*> PushJob::AddDerived(const TensorId& id, TensorRecord record) {
  NewTensor made;
  made.id = id;
  made.record = std::move(record);
  made.derived = true;
  RETURN_IF_ERROR(Introduce(&made));
  return new_tensors_.Add(std::move(made));
}

Status PushJob::Introduce(NewTensor* tensor) {
  ASSIGN_OR_RETURN(tensor->introduced, catalog_.reader().OpenUnpublished(tensor->id, tensor->record));
  catalog_.reader().Introduce(tensor->introduced);
  return OkStatus();
}

void PushJob::Withdraw() {
  for (NewTensor& tensor : new_tensors_) {
    if (tensor.introduced != nullptr) catalog_.reader().Withdraw(tensor.introduced);
    tensor.introduced = nullptr;
  }
}

// A file of parts is what it will be read as.
Status PushJob::HashFilesWithParts() {
  uint64_t bytes = 0;
  for (const PlannedFile& file : files_) {
    if (file.has_parts) bytes += file.source->bytes;
  }
  if (bytes == 0) return OkStatus();
  job_.Begin("hashing", bytes);
  for (PlannedFile& file : files_) {
    if (!file.has_parts) continue;
    Sha256 sha256;
    BufferPool::Lease window(holds_);
    for (const PlannedExtent& extent : file.extents) {
      if (extent.source.is_literal()) {
        sha256.Update(extent.source.literal);
        continue;
      }
      const PlannedExtent& origin = OriginOf(extent);
      TensorRef tensor;
      if (origin.stored || origin.made->derived) {
        ASSIGN_OR_RETURN(tensor, catalog_.reader().OpenTensorById(IdOf(extent)));
      } else {
        ASSIGN_OR_RETURN(tensor, catalog_.reader().OpenUnpublished(IdOf(extent), origin.made->record));
      }
      for (uint64_t at = 0; at < extent.source.bytes; at += kHashWindowBytes) {
        RETURN_IF_ERROR(job_.Check());
        const uint64_t n = std::min(kHashWindowBytes, extent.source.bytes - at);
        RETURN_IF_ERROR(catalog_.reader().ReadTensor(tensor, extent.part_offset + at, window->Resize(n)));
        sha256.Update(window->span());
        job_.Advance(n);
      }
    }
    file.sha256 = sha256.Finish();
  }
  return OkStatus();
}

Result<uint64_t> PushJob::MeasureAdded() {
  for (PlannedFile& file : files_) {
    if (!file.has_parts) continue;
    // Not hashed yet: any name that no stored file has.
    Sha256 sha256;
    sha256.Update(AsBytes(options_.name + "/" + file.source->path + " of push " + std::to_string(push_)));
    file.sha256 = sha256.Finish();
  }
  RETURN_IF_ERROR(MarkNeeded());
  WriteBatch batch;
  ASSIGN_OR_RETURN(const uint64_t block_bytes, AddRecords(&batch));
  return block_bytes + batch.put_bytes() + options_.name.size() + Serialize(MakeModel()).size();
}

std::string PushJob::CompactMethod() const {
  const CompactOptions& compact = *options_.compact;
  std::string method;
  if (CompactCoder::HasFixedChoice(compact)) {
    const CompactChoice& choice = *compact.choice;
    if (choice.bits > 0) {
      method = "GPT-Zip, " + std::to_string(choice.bits) + " bits, sparsity " + Ratio(choice.sparsity);
    } else {
      method = "rank " + std::to_string(choice.rank);
      if (choice.residual_step > 0) method += ", residual of " + Ratio(choice.residual_step) + " sigma";
    }
  } else {
    constexpr std::string_view kSchedules[] = {"uniform", "aptc", "rate-distortion"};
    method = std::string(kSchedules[static_cast<size_t>(compact.schedule)]);
    method += compact.target_ratio ? ", ratio " + Ratio(*compact.target_ratio)
                                   : ", drift " + Ratio(compact.max_drift.value_or(kDefaultMaxDrift));
  }
  if (compact.scale) method += ", scale " + Ratio(*compact.scale);
  return method;
}

}  // namespace modelstore
