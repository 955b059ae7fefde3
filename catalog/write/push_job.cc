#include "catalog/write/push_job.h"

#include <algorithm>

#include "codec/decode/block_decoder.h"
#include "codec/support/guarded.h"

namespace modelstore {
namespace {

constexpr uint64_t kWindowBytes = 1 << 18;  // hashed twice while it is in the core's cache
// Smaller tensors cannot save what the records of a delta cost.
constexpr uint64_t kMinDeltaBytes = 512;
// What a thread needs besides the tensor and the prediction that it holds: samples and their statistics (bounded by
// kMaxSampleWindows) or a batch of coded blocks, as it is and as RocksDB copies it.
constexpr uint64_t kLaneBytes = 5 << 20;
constexpr uint64_t kWideLaneBytes = 24 << 20;  // histograms and samples of F64 are that large
constexpr uint64_t kMinHoldBytes = 256 << 10;

bool MayBeDelta(const SourceExtent& extent) {
  return DTypeIsFloat(extent.dtype) && !extent.name.empty() && extent.bytes >= kMinDeltaBytes;
}

}  // namespace

std::string PushJob::Megabytes(uint64_t bytes) {
  return bytes < 1'000'000 ? std::to_string(bytes) + " bytes" : std::to_string((bytes + 999'999) / 1'000'000) + " MB";
}

void PushJob::SplitMemory() {
  bool wide = false;
  for (const PlannedFile& file : files_) {
    for (const PlannedExtent& extent : file.extents) wide |= extent.source.dtype == DType::kF64;
  }
  const uint64_t lane_bytes = wide ? kWideLaneBytes : kLaneBytes;
  const uint64_t fitting = memory_.bytes() / (lane_bytes + 2 * kMinHoldBytes);
  const unsigned count = static_cast<unsigned>(std::clamp<uint64_t>(fitting, 1, catalog_.pool().threads() + 1));
  lanes_ = std::make_unique<Lanes>(catalog_.pool(), count);
  const uint64_t each = memory_.bytes() / count;
  hold_bytes_ = std::max((each - std::min(each, lane_bytes)) / 2, kMinHoldBytes);
}

Status PushJob::Plan() {
  std::map<std::vector<uint64_t>, size_t> shapes;
  uint64_t blocks = 0;
  for (const SourceFile& source : source_.files()) {
    PlannedFile& file = files_.emplace_back();
    file.source = &source;
    file.mode = source.mode;
    ASSIGN_OR_RETURN(file.is_record, HasRecord(source));
    if (file.is_record) {
      file.sha256 = *source.stored;
      file.known = true;
      continue;
    }
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(source));
    RETURN_IF_ERROR(reader.CheckSame());
    ASSIGN_OR_RETURN(FileLayout layout, LayOutFile(reader, job_));
    file.kind = layout.kind;
    for (SourceExtent& extent : layout.extents) {
      PlannedExtent& planned = file.extents.emplace_back();
      planned.source = std::move(extent);
      planned.file = &file;
      planned.index = file.extents.size() - 1;
      if (planned.source.is_literal()) continue;
      if (source.content != nullptr) Place(*source.content, planned);
      if (planned.is_placed) continue;
      if (source.content != nullptr)
        planned.projection = source.content->ProjectionOf(planned.source.begin, planned.source.bytes);
      if (MayBeDelta(planned.source)) planned.position = shapes[planned.source.shape]++;
      // Blocks in file order, so that reading a file from front to back reads the store's files in order too.
      planned.first_block = static_cast<uint32_t>(blocks);
      blocks += BlocksFor(planned.source.bytes);
      if (blocks > UINT32_MAX)
        return ResourceExhausted("a push of more than " + Megabytes(uint64_t{UINT32_MAX} * kBlockBytes) +
                                 "; push its files as several models");
    }
  }
  next_block_ = blocks;
  std::vector<std::vector<uint64_t>> wanted;
  for (const auto& [shape, count] : shapes) wanted.push_back(shape);
  ASSIGN_OR_RETURN(bases_, BaseChooser::Load(catalog_, options_, wanted));
  for (const PlannedFile& file : files_) {
    if (file.is_record) RETURN_IF_ERROR(GoOnDespite(CountStored(file)));
  }
  return OkStatus();
}

// A file that lost its last model and is only kept for who has it open may have none: its content is pushed then.
Result<bool> PushJob::HasRecord(const SourceFile& source) const {
  if (!source.stored || options_.compact) return false;
  const Status found = catalog_.store().Get(Family::kFiles, FileKey(*source.stored)).status();
  if (!found.ok() && found.code() != StatusCode::kNotFound) return found;
  return found.ok();
}

Status PushJob::CountStored(const PlannedFile& file) {
  ASSIGN_OR_RETURN(const FileRef stored, catalog_.reader().OpenFileByHash(file.sha256));
  for (const Extent& extent : stored->record().extents) {
    if (extent.kind == Extent::Kind::kLiteral) continue;
    ASSIGN_OR_RETURN(const TensorRef tensor, catalog_.reader().OpenTensorById(extent.tensor));
    bases_->Vote(extent.tensor, extent.bytes);
    CountBases(tensor->record);
  }
  return OkStatus();
}

void PushJob::Place(const SourceContent& content, PlannedExtent& extent) {
  const std::optional<SourceContent::Place> place = content.PlaceOf(extent.source.begin, extent.source.bytes);
  if (!place) return;
  extent.stored = place->tensor;
  extent.is_part = place->is_part;
  extent.part_offset = place->offset_bytes;
  extent.is_placed = extent.file->has_parts = true;
}

Status PushJob::CodeAll() {
  job_.Begin("storing", source_.total_bytes());
  std::vector<PlannedExtent*> extents;
  for (PlannedFile& file : files_) {
    if (!file.has_parts) SkipLiterals(file);
    if (file.is_record) job_.Advance(file.source->bytes);
    for (PlannedExtent& extent : file.extents) {
      if (extent.needs_coding()) extents.push_back(&extent);
    }
  }
  RETURN_IF_ERROR(lanes_->Run(extents.size(), [&](size_t i) { return CodeInTurn(*extents[i]); }));
  for (PlannedFile& file : files_) {
    if (!file.has_parts && !file.is_record) file.sha256 = file.sha256_so_far.Finish();
  }
  std::vector<PlannedExtent*> deferred;
  {
    const MutexLock lock(mutex_);
    deferred.swap(deferred_);
  }
  std::vector<const SourceExtent*> small;
  for (const PlannedExtent* extent : deferred) small.push_back(&extent->source);
  RETURN_IF_ERROR(GoOnDespite(bases_->Elect(small)));
  RETURN_IF_ERROR(lanes_->Run(deferred.size(), [&](size_t i) { return CodeDeferred(*deferred[i]); }));
  return CheckSources();
}

// Literals are in memory since Plan: they take no turn of their own.
void PushJob::SkipLiterals(PlannedFile& file) {
  for (; file.turn < file.extents.size() && file.extents[file.turn].source.is_literal(); ++file.turn)
    file.sha256_so_far.Update(file.extents[file.turn].source.literal);
}

Status PushJob::CodeInTurn(PlannedExtent& extent) {
  const Status status = Guarded([&] { return Code(extent); });
  if (status.ok()) return status;
  const MutexLock lock(turn_mutex_);
  if (failure_.ok()) failure_ = status;
  turn_changed_.NotifyAll();
  return failure_;
}

Status PushJob::HashInTurn(const TensorData& data, PlannedExtent& extent) {
  PlannedFile& file = *extent.file;
  const SourceExtent& source = extent.source;
  if (!file.has_parts) {
    // Extents start in file order, so whoever is waited for is at work.
    MutexLock lock(turn_mutex_);
    while (file.turn != extent.index && failure_.ok()) turn_changed_.Wait(turn_mutex_);
    RETURN_IF_ERROR(failure_);
  }
  Hasher128 hasher = StartTensorHash(source.dtype, source.shape);
  BufferPool::Lease scratch(scratches_);
  for (uint64_t at = 0; at < source.bytes; at += kWindowBytes) {
    RETURN_IF_ERROR(job_.Check());
    ASSIGN_OR_RETURN(const ByteSpan window, data.Read(at, std::min(kWindowBytes, source.bytes - at), scratch.get()));
    hasher.Update(window);
    if (!file.has_parts) file.sha256_so_far.Update(window);
  }
  extent.hash = hasher.Finish();
  if (file.has_parts) return OkStatus();
  const MutexLock lock(turn_mutex_);
  ++file.turn;
  SkipLiterals(file);
  turn_changed_.NotifyAll();
  return OkStatus();
}

Status PushJob::Code(PlannedExtent& extent) {
  RETURN_IF_ERROR(job_.Check());
  const SourceExtent& source = extent.source;
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extent.file->source));
  BufferPool::Lease hold(holds_);
  ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, source, hold_bytes_, hold.get()));
  RETURN_IF_ERROR(HashInTurn(data, extent));
  ASSIGN_OR_RETURN(extent.sketch, MakeSketch(data));

  std::vector<const PlannedExtent*> rivals;
  {
    const MutexLock lock(mutex_);
    std::vector<const PlannedExtent*>& claims = claims_[extent.hash];
    rivals = claims;
    claims.push_back(&extent);
  }
  for (const PlannedExtent* rival : rivals) {
    ASSIGN_OR_RETURN(const bool equal, EqualsExtent(data, *rival));
    if (!equal) continue;
    extent.repeats = rival;
    {
      // One claim a content, so that many identical tensors stay linear.
      const MutexLock lock(mutex_);
      std::erase(claims_[extent.hash], &extent);
    }
    job_.Advance(source.bytes);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const bool identical, FindIdentical(data, extent));
  if (identical) {
    bases_->Vote(*extent.stored, source.bytes);
    ASSIGN_OR_RETURN(const TensorRef stored, catalog_.reader().OpenTensorById(*extent.stored));
    CountBases(stored->record);
    job_.Advance(source.bytes);
    return OkStatus();
  }
  std::vector<BaseCandidate> candidates;
  if (bases_->may_use_bases() && MayBeDelta(source)) {
    if (options_.base == PushOptions::Base::kNamed) {
      ASSIGN_OR_RETURN(candidates, bases_->ByModel(source, extent.position));
    }
    if (extent.sketch) {
      ASSIGN_OR_RETURN(const std::vector<BaseCandidate> near, bases_->ByContent(source, *extent.sketch));
      for (const BaseCandidate& candidate : near) {
        const bool is_new = std::none_of(candidates.begin(), candidates.end(), [&](const BaseCandidate& other) {
          return other.base->id == candidate.base->id;
        });
        if (is_new) candidates.push_back(candidate);
      }
    }
    if (candidates.empty() && options_.base == PushOptions::Base::kAuto) {
      const MutexLock lock(mutex_);
      deferred_.push_back(&extent);
      return OkStatus();
    }
  }
  return StoreNew(data, extent, candidates);
}

Status PushJob::CodeDeferred(PlannedExtent& extent) {
  RETURN_IF_ERROR(job_.Check());
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extent.file->source));
  BufferPool::Lease hold(holds_);
  ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, extent.source, hold_bytes_, hold.get()));
  ASSIGN_OR_RETURN(const std::vector<BaseCandidate> candidates, bases_->ByModel(extent.source, extent.position));
  return StoreNew(data, extent, candidates);
}

Status PushJob::StoredOfHash(const Hash128& hash, std::vector<TensorId>* ids) {
  return catalog_.store().ScanKeys(Family::kTensors, TensorKeyPrefix(hash), [&](std::string_view key) -> Status {
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(key));
    ids->push_back(id);
    return OkStatus();
  });
}

// The first ordinal from `first` on that this push has not given to another content of the hash. (One that another push
// publishes meanwhile is noticed by YieldToRivals.)
Result<uint16_t> PushJob::AllotOrdinal(const Hash128& hash, uint32_t first) {
  const MutexLock lock(mutex_);
  for (uint32_t ordinal = first; ordinal <= UINT16_MAX; ++ordinal) {
    const uint16_t allotted = static_cast<uint16_t>(ordinal);
    if (allotted_.insert({hash, allotted}).second) return allotted;
  }
  return ResourceExhausted("'" + options_.name + "': more than 65535 different contents share the hash of a tensor");
}

// Sets extent.stored when a stored tensor has these bytes; else extent.ordinal, behind those in use.
Result<bool> PushJob::FindIdentical(const TensorData& data, PlannedExtent& extent) {
  std::vector<TensorId> ids;
  RETURN_IF_ERROR(StoredOfHash(extent.hash, &ids));
  for (const TensorId& id : ids) {
    const Result<bool> equal = EqualsStored(data, id);
    // A damaged tensor equals nothing: pushing its bytes again stores them again.
    if (!equal.ok() && equal.status().code() != StatusCode::kCorruption) return equal.status();
    if (!equal.ok() || !*equal) continue;
    extent.stored = id;
    return true;
  }
  ASSIGN_OR_RETURN(extent.ordinal, AllotOrdinal(extent.hash, ids.empty() ? 0 : ids.back().ordinal + 1u));
  return false;
}

Result<bool> PushJob::EqualsStored(const TensorData& data, const TensorId& id) {
  ASSIGN_OR_RETURN(const TensorRef tensor, catalog_.reader().OpenTensorById(id));
  return EqualsTensor(data, tensor);
}

Result<bool> PushJob::EqualsTensor(const TensorData& data, const TensorRef& tensor) {
  const TensorRecord& record = tensor->record;
  const SourceExtent& source = data.extent();
  if (record.dtype != source.dtype || record.shape != source.shape || record.bytes != source.bytes) return false;
  // Only the push that makes a compact tensor again takes it: an exact file must not depend on one.
  if (!record.encoding().may_be_base) return false;
  std::atomic<bool> equal{true};
  const auto compare = [&](size_t block) -> Status {
    if (!equal) return OkStatus();
    const uint32_t index = static_cast<uint32_t>(block);
    Buffer scratch;
    // First: a source may wait for memory, and nobody may while holding a block.
    ASSIGN_OR_RETURN(const ByteSpan own, data.Read(tensor->frame.BlockBegin(index) * DTypeBytes(record.dtype),
                                                   BlockBytes(tensor->frame, index), &scratch));
    ASSIGN_OR_RETURN(const BlockRef stored, catalog_.reader().ReadBlock(tensor, index, /*keep=*/false));
    if (!SameBytes(own, stored.bytes())) equal = false;
    return OkStatus();
  };
  RETURN_IF_ERROR(lanes_->Run(tensor->frame.BlockCount(), compare));
  return equal.load();
}

Result<bool> PushJob::EqualsExtent(const TensorData& data, const PlannedExtent& other) {
  const SourceExtent& source = data.extent();
  if (other.source.dtype != source.dtype || other.source.shape != source.shape) return false;
  ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*other.file->source));
  Buffer own_scratch, other_scratch;
  for (uint64_t at = 0; at < source.bytes; at += kWindowBytes) {
    const uint64_t bytes = std::min(kWindowBytes, source.bytes - at);
    ASSIGN_OR_RETURN(const ByteSpan own, data.Read(at, bytes, &own_scratch));
    RETURN_IF_ERROR(reader.ReadAt(other.source.begin + at, other_scratch.Resize(bytes)));
    if (!SameBytes(own, other_scratch.span())) return false;
  }
  return true;
}

Status PushJob::StoreNew(const TensorData& data, PlannedExtent& extent, const std::vector<BaseCandidate>& candidates) {
  const SourceExtent& source = extent.source;
  NewTensor made;
  made.id = {extent.hash, extent.ordinal};
  if (source.bytes == 0) {
    made.record.dtype = source.dtype;
    made.record.shape = source.shape;
    made.record.push = push_;
    made.record.frame = SerializeFrame(PlainFrame(Encoding::kRaw, source.dtype, 0));
  } else if (extent.projection) {
    ASSIGN_OR_RETURN(made.record, Project(extent));
  } else {
    JobPart part(job_, source.bytes);
    const auto store = [&](const std::vector<BaseCandidate>& bases) -> Result<TensorRecord> {
      ASSIGN_OR_RETURN(const BaseChoice choice, bases_->Choose(data, bases));
      return writer_->Store(data, choice, extent.first_block, &part);
    };
    Result<TensorRecord> record = store(candidates);
    if (!record.ok()) {
      // A source that changed between two passes can surface as a failure of the encoder.
      ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extent.file->source));
      RETURN_IF_ERROR(reader.CheckUnchanged());
    }
    if (!record.ok() && record.status().code() == StatusCode::kCorruption && !candidates.empty()) {
      // A damaged base: the tensor is stored by itself, without what was written against the base.
      WriteBatch batch;
      batch.DeleteRange(Family::kBlocks, BlockKey(push_, extent.first_block),
                        BlocksEnd(push_, uint64_t{extent.first_block} + BlocksFor(source.bytes)));
      RETURN_IF_ERROR(catalog_.store().Write(batch, Durability::kNone));
      record = store({});
    }
    if (!record.ok()) return record.status();
    made.record = *std::move(record);
    for (const ViewSegment& segment : made.record.ViewOf(InputRole::kBase)) {
      if (segment.kind == ViewSegment::Kind::kIdentity)
        bases_->Vote(segment.base, segment.elems * DTypeBytes(source.dtype));
    }
    CountBases(made.record);
  }
  extent.made = new_tensors_.Add(std::move(made));
  return OkStatus();
}

// Its bytes were computed by the source; verifying computes them again, as every read will.
Result<TensorRecord> PushJob::Project(const PlannedExtent& extent) {
  const SourceContent::Projection& projection = *extent.projection;
  const SourceExtent& source = extent.source;
  TensorRecord record;
  record.dtype = source.dtype;
  record.shape = source.shape;
  record.bytes = source.bytes;
  record.push = push_;
  Frame frame;
  frame.encoding = Encoding::kProjected;
  frame.dtype = frame.coded_dtype = source.dtype;
  frame.elems = source.elems();
  frame.block_elems = kBlockBytes / DTypeBytes(source.dtype);
  frame.projection = {projection.axes->columns, projection.axes->rows, projection.norm.has_value()};
  record.frame = SerializeFrame(frame);
  const auto add = [&](const TensorId& id, uint64_t elems, InputRole role) -> Status {
    ASSIGN_OR_RETURN(const TensorRef tensor, catalog_.reader().OpenTensorById(id));
    record.depth = std::max<uint8_t>(record.depth, tensor->record.depth + 1);
    record.MutableViewOf(role).push_back({ViewSegment::Kind::kIdentity, elems, id, 0});
    return OkStatus();
  };
  const uint64_t depth = projection.axes->rows, rows = frame.elems / projection.axes->columns;
  RETURN_IF_ERROR(add(projection.weight, rows * depth, InputRole::kWeight));
  RETURN_IF_ERROR(add(axes_.at(projection.axes.get()), depth * projection.axes->columns, InputRole::kAxes));
  if (projection.norm) RETURN_IF_ERROR(add(*projection.norm, depth, InputRole::kNorm));
  return record;
}

Status PushJob::StoreAxes() {
  for (const PlannedFile& file : files_) {
    for (const PlannedExtent& extent : file.extents) {
      if (!extent.projection || axes_.contains(extent.projection->axes.get())) continue;
      const SourceContent::Axes& axes = *extent.projection->axes;
      SourceExtent content;
      ASSIGN_OR_RETURN(const Bytes patterns, axes.load());
      content.bytes = patterns.size();
      content.dtype = DType::kF16;
      content.shape = {axes.rows, axes.columns};
      content.name = "axes of a projection";
      ASSIGN_OR_RETURN(const BaseChoice choice, bases_->Choose(TensorData::Over(content, patterns), {}));
      ASSIGN_OR_RETURN(const TensorId id, StoreDerived(patterns, content, choice));
      axes_.emplace(&axes, id);
    }
  }
  return OkStatus();
}

void PushJob::CountBases(const TensorRecord& record) {
  for (const ViewSegment& segment : record.ViewOf(InputRole::kBase)) {
    if (segment.kind == ViewSegment::Kind::kIdentity)
      bases_->CountBase(segment.base, segment.elems * DTypeBytes(record.dtype));
  }
}

Status PushJob::ExplainNoSpace(const Status& status) const {
  if (status.code() != StatusCode::kNoSpace) return status;
  return NoSpace("the disk became full after " + Megabytes(writer_->written_bytes()) + " of '" + options_.name +
                 "' were written; nothing was published, free space and push again (" + std::string(status.message()) +
                 ")");
}

Status PushJob::CheckSources() {
  for (PlannedFile& file : files_) {
    if (file.source->content != nullptr) continue;
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*file.source));
    RETURN_IF_ERROR(reader.CheckSame());
    ASSIGN_OR_RETURN(const TimeNs changed_ns, reader.ChangeTimeNow());
    if (changed_ns != file.source->ctime_ns) RETURN_IF_ERROR(CheckContent(reader, file));
  }
  return OkStatus();
}

// A new time of change alone may mean a new mode, name or owner, or a rewrite whose time of modification was set back:
// only the content tells.
Status PushJob::CheckContent(const SourceReader& reader, PlannedFile& file) {
  if (file.has_parts) return SourceChanged(*file.source, "its content or attributes were changed");
  ASSIGN_OR_RETURN(const TimeNs before_ns, reader.ChangeTimeNow());
  BufferPool::Lease window(scratches_);
  Sha256 sha256;
  for (uint64_t at = 0; at < file.source->bytes; at += kWindowBytes) {
    RETURN_IF_ERROR(job_.Check());
    const MutableByteSpan out = window->Resize(std::min(kWindowBytes, file.source->bytes - at));
    RETURN_IF_ERROR(reader.ReadAt(at, out));
    sha256.Update(out);
  }
  RETURN_IF_ERROR(reader.CheckSame());
  ASSIGN_OR_RETURN(const TimeNs after_ns, reader.ChangeTimeNow());
  if (sha256.Finish() != file.sha256 || after_ns != before_ns)
    return SourceChanged(*file.source, "its content was changed");
  ASSIGN_OR_RETURN(const uint32_t mode, reader.ModeNow());
  file.mode &= mode | 0500;
  return OkStatus();
}

}  // namespace modelstore
