#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "catalog/write/file_reader.h"
#include "catalog/write/levels.h"
#include "catalog/write/missing_shards.h"
#include "catalog/write/model_loss.h"
#include "catalog/write/model_names.h"
#include "catalog/write/push_job.h"
#include "catalog/write/store_usage.h"
#include "codec/support/clock.h"
#include "codec/support/guarded.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

constexpr Family kCatalogFamilies[] = {Family::kModels, Family::kFiles,    Family::kTensors,
                                       Family::kEdges,  Family::kSketches, Family::kMeta};
constexpr Family kBlockFamily[] = {Family::kBlocks};
constexpr uint64_t kBlockKeyBytes = 12;
// Of blocks that a push wrote in vain, less than this, and less than this part of what it wrote, waits for prune. When
// all was in vain, little never left memory.
constexpr uint64_t kCollectedBytes = 64 << 10;
constexpr uint64_t kCollectedShare = 64;
// How often an update prepares without the lock that keeps others from publishing.
constexpr int kPrepareAttempts = 3;
constexpr uint64_t kCollectedByRollBack = 16 << 20;

}  // namespace

Result<PushReport> PushJob::Run() {
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(CheckModelName(options_.name));
  ChangeNotice notice(catalog_, {options_.name});  // the last to go: the listener takes locks of its own
  RETURN_IF_ERROR(FindReplaced().status());
  uint64_t need_bytes = 0;
  if (options_.compact) {
    ASSIGN_OR_RETURN(need_bytes, CompactNeed());
  }
  ASSIGN_OR_RETURN(memory_, catalog_.push_memory().Take(job_, need_bytes));
  // Nothing that this push refers to is collected while it runs.
  ASSIGN_OR_RETURN(CollectGate::Hold keep, catalog_.collect_gate().Share(job_));
  RETURN_IF_ERROR(Plan());
  RETURN_IF_ERROR(WarnOfMissingShards(source_, job_));
  SplitMemory();
  if (options_.compact) RETURN_IF_ERROR(SelectCompact());
  RETURN_IF_ERROR(CheckSpace());
  RETURN_IF_ERROR(AllocatePush());
  writer_ = std::make_unique<TensorWriter>(catalog_, push_, *lanes_, hold_bytes_, job_);

  PushReport report;
  const Status status = Guarded([&]() -> Status {
    RETURN_IF_ERROR(StoreAxes());
    RETURN_IF_ERROR(CodeAll());
    holds_.Clear();
    if (options_.compact) RETURN_IF_ERROR(EncodeCompact());
    RETURN_IF_ERROR(HashFilesWithParts());
    RETURN_IF_ERROR(MarkNeeded());
    RETURN_IF_ERROR(VerifyKnown());
    if (!options_.compact) RETURN_IF_ERROR(MaterialiseBases());
    holds_.Clear();
    writer_->ReleaseBuffers();
    RETURN_IF_ERROR(Verify());
    const Result<const ModelRecord*> base = bases_->BaseModel();
    if (!base.ok()) RETURN_IF_ERROR(GoOnDespite(base.status()));
    RETURN_IF_ERROR(keep.Keep());
    return Publish(base.ok() ? *base : nullptr, &report);
  });
  if (!status.ok()) {
    RollBack();
    return ExplainNoSpace(status);
  }
  notice.Published();
  for (const PlannedFile& file : files_) {
    if (file.mends) catalog_.reader().ForgetFile(file.sha256);
  }
  for (const NewTensor& tensor : materialised_) {
    if (tensor.needed) catalog_.reader().ForgetTensor(tensor.id);
  }
  // The published batch is in the synced log already; this takes it out of the log's reach.
  if (const Status flushed = catalog_.store().Flush(kCatalogFamilies); !flushed.ok())
    job_.Warn("'" + options_.name + "' is stored, but the store could not flush its records: " + flushed.ToString());
  if (!damage_.ok())
    job_.Warn("'" + options_.name + "' is stored, but not all of the store can be read, so that its figures and the " +
              "choice of bases may be worse than they could be; verify tells what is damaged (" + damage_.ToString() +
              ")");
  keep.Release();
  if (const Status collected = CollectOwnBlocks(kCollectedBytes); !collected.ok())
    job_.Warn("'" + options_.name + "' is stored, but the space of what it was planned with was not given back (" +
              collected.ToString() + "); run prune to free it");
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Status PushJob::CheckDerivation() const {
  if (!options_.derivation) return OkStatus();
  const ModelRecord& source = options_.derivation->source;
  const std::optional<ModelEntry> now = catalog_.FindById(source.id);
  if (now && now->push == source.push) return OkStatus();
  return Busy("'" + source.name + "' was replaced or removed while '" + options_.name +
              "' was derived from it; nothing was stored, try again");
}

Result<std::optional<ModelRecord>> PushJob::FindReplaced() const {
  const std::string& name = options_.name;
  if (!options_.update) {
    RETURN_IF_ERROR(CheckNameIsFree(catalog_.store(), name));
    return std::optional<ModelRecord>();
  }
  RETURN_IF_ERROR(CheckNameIsFree(catalog_.store(), name, /*leaving=*/name));
  Result<ModelRecord> found = catalog_.FindModel(name);
  if (found.status().code() == StatusCode::kNotFound) return std::optional<ModelRecord>();
  if (!found.ok()) return found.status();
  if (options_.may_replace) RETURN_IF_ERROR(options_.may_replace(*found));
  return std::optional(*std::move(found));
}

Status PushJob::GoOnDespite(const Status& status) {
  if (!IsDamage(status)) return status;
  if (damage_.ok()) damage_ = status;
  return OkStatus();
}

Status PushJob::AllocatePush() {
  const MutexLock lock(catalog_.publish_mutex());
  ASSIGN_OR_RETURN(CatalogMeta meta, catalog_.Meta());
  push_ = meta.next_push++;
  WriteBatch batch;
  batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
  return catalog_.store().Write(batch, Durability::kSync);
}

const PushJob::PlannedExtent& PushJob::OriginOf(const PlannedExtent& extent) {
  const PlannedExtent* origin = &extent;
  while (origin->repeats != nullptr) origin = origin->repeats;
  return *origin;
}

const TensorId& PushJob::IdOf(const PlannedExtent& extent) {
  const PlannedExtent& origin = OriginOf(extent);
  return origin.stored ? *origin.stored : origin.made->id;
}

Status PushJob::FindStored(PlannedFile& file) {
  const Result<StoredValue> stored = catalog_.store().Get(Family::kFiles, FileKey(file.sha256));
  if (stored.status().code() == StatusCode::kNotFound) return OkStatus();
  RETURN_IF_ERROR(stored.status());
  if (file.kind == FileKind::kSafetensors && !file.has_parts) {
    // Stored before its tensors could be seen, as under another name by an older build: finetunes would find none.
    const Result<FileRecord> record = ParseFileRecord(stored->bytes());
    file.mends = record.ok() && record->kind == FileKind::kContent;
  }
  file.known = !file.mends;
  return OkStatus();
}

Status PushJob::MarkNeeded() {
  for (NewTensor& tensor : new_tensors_) tensor.needed = false;
  std::set<Sha256Digest> seen;
  for (PlannedFile& file : files_) {
    if (!file.known && !file.mends) RETURN_IF_ERROR(FindStored(file));
    file.repeats = !seen.insert(file.sha256).second;
    if (file.known || file.repeats) continue;
    for (PlannedExtent& extent : file.extents) {
      if (extent.source.is_literal()) continue;
      const PlannedExtent& origin = OriginOf(extent);
      if (!origin.stored) origin.made->needed = true;
    }
  }
  std::map<TensorId, NewTensor*> derived;
  for (NewTensor& tensor : new_tensors_) {
    if (tensor.derived) derived.emplace(tensor.id, &tensor);
  }
  for (NewTensor& tensor : new_tensors_) {
    if (!tensor.needed) continue;
    ForEachPart(tensor.record, [&](const TensorId& part) {
      if (const auto own = derived.find(part); own != derived.end()) own->second->needed = true;
    });
  }
  return OkStatus();
}

// Whether the stored record consists of the very tensors that this push decoded and compared.
Result<bool> PushJob::IsAsCompared(const PlannedFile& file) {
  ASSIGN_OR_RETURN(const StoredValue value, catalog_.store().Get(Family::kFiles, FileKey(file.sha256)));
  const Result<FileRecord> record = ParseFileRecord(value.bytes());
  if (!record.ok() || record->extents.size() != file.extents.size()) return false;
  for (size_t i = 0; i < file.extents.size(); ++i) {
    const Extent& stored = record->extents[i];
    const PlannedExtent& own = file.extents[i];
    const bool is_literal = stored.kind == Extent::Kind::kLiteral;
    if (is_literal != own.source.is_literal() || stored.bytes != own.source.bytes) return false;
    if (is_literal ? !SameBytes(stored.literal, own.source.literal)
                   : !OriginOf(own).stored || *OriginOf(own).stored != stored.tensor ||
                         stored.kind != (own.is_part ? Extent::Kind::kTensorPart : Extent::Kind::kTensor) ||
                         stored.offset_bytes != own.part_offset)
      return false;
  }
  return true;
}

Status PushJob::VerifyKnown() {
  std::set<Sha256Digest> unread;
  uint64_t bytes = 0;
  for (const PlannedFile& file : files_) {
    if (!file.known || file.repeats) continue;
    ASSIGN_OR_RETURN(const bool compared, IsAsCompared(file));
    if (compared) continue;
    unread.insert(file.sha256);
    bytes += file.source->bytes;
  }
  if (unread.empty()) return OkStatus();
  job_.Begin("verifying", bytes);
  for (const Sha256Digest& sha256 : unread) {
    const Status read = ReadWholeFile(catalog_, sha256, job_, [](ByteSpan) { return OkStatus(); });
    if (read.ok()) continue;
    if (read.code() != StatusCode::kCorruption) return read;
    for (PlannedFile& file : files_) {
      if (file.sha256 != sha256) continue;
      if (file.is_record) return read.WithContext(file.source->shown_as + ", which is stored already");
      file.known = false;
      file.mends = true;
    }
  }
  return MarkNeeded();
}

Status PushJob::Verify() {
  RETURN_IF_ERROR(catalog_.store().Flush(kBlockFamily));
  std::vector<const NewTensor*> tensors;
  uint64_t bytes = 0;
  const auto add = [&](const NewTensor& tensor) {
    tensors.push_back(&tensor);
    bytes += tensor.record.bytes;
  };
  for (const NewTensor& tensor : new_tensors_) {
    if (tensor.needed) add(tensor);
  }
  for (const NewTensor& tensor : materialised_) add(tensor);
  job_.Begin("verifying", bytes);
  return lanes_->Run(tensors.size(), [&](size_t i) -> Status {
    ASSIGN_OR_RETURN(const Hash128 hash, writer_->HashStored(tensors[i]->record));
    if (hash != tensors[i]->id.hash)
      return Corruption(
          "a tensor decodes to other bytes than were pushed; nothing was published: check this "
          "machine's memory and disk, and push again");
    return OkStatus();
  });
}

Status PushJob::YieldToRivals() {
  for (PlannedFile& file : files_) {
    for (PlannedExtent& extent : file.extents) {
      if (extent.made == nullptr || !extent.made->needed || extent.made->derived) continue;
      const Result<StoredValue> rival = catalog_.store().Get(Family::kTensors, TensorKey(extent.made->id));
      if (!rival.ok()) {
        if (rival.status().code() != StatusCode::kNotFound) return rival.status();
        continue;
      }
      ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*file.source));
      Buffer hold;
      ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, extent.source, hold_bytes_, &hold));
      ASSIGN_OR_RETURN(const bool equal, EqualsStored(data, extent.made->id));
      if (!equal)
        return Busy("another push stored a tensor of the same hash as '" + extent.source.name +
                    "' at the same time; push again");
      extent.stored = extent.made->id;
      extent.made->needed = false;
    }
  }
  return OkStatus();
}

// What was derived has no source to compare with: both are decoded.
Status PushJob::YieldDerived() {
  for (NewTensor& tensor : new_tensors_) {
    if (!tensor.derived || !tensor.needed) continue;
    const Result<StoredValue> stored = catalog_.store().Get(Family::kTensors, TensorKey(tensor.id));
    if (stored.status().code() == StatusCode::kNotFound) continue;
    RETURN_IF_ERROR(stored.status());
    const TensorRef own = tensor.introduced;
    catalog_.reader().Withdraw(std::exchange(tensor.introduced, nullptr));
    ASSIGN_OR_RETURN(const TensorRef rival, catalog_.reader().OpenTensorById(tensor.id));
    ASSIGN_OR_RETURN(const bool equal, SameContent(own, rival));
    if (!equal)
      return Busy("another push stored a tensor of the same hash as one of '" + options_.name +
                  "' at the same time; push again");
    tensor.needed = false;
  }
  // Parts that only tensors have that yielded.
  std::set<TensorId> spared;
  for (const NewTensor& tensor : new_tensors_) {
    if (!tensor.needed) ForEachPart(tensor.record, [&](const TensorId& part) { spared.insert(part); });
  }
  for (const NewTensor& tensor : new_tensors_) {
    if (tensor.needed) ForEachPart(tensor.record, [&](const TensorId& part) { spared.erase(part); });
  }
  for (NewTensor& tensor : new_tensors_) {
    if (tensor.derived && spared.contains(tensor.id)) tensor.needed = false;
  }
  return OkStatus();
}

// Packed records have limits (docs/format.md), for whoever reads them.
Status PushJob::TooManyTensors() const {
  return ResourceExhausted("'" + options_.name +
                           "' has more tensors than the record of a compact model may list; push it exactly");
}

void PushJob::DropBlocks(const TensorRecord& record, WriteBatch* batch) const {
  if (record.block_count > 0)
    batch->DeleteRange(Family::kBlocks, BlockKey(push_, record.first_block),
                       BlocksEnd(push_, uint64_t{record.first_block} + record.block_count));
}

// Records, edges and sketches of what this push made; blocks that are not needed after all go.
Status PushJob::AddTensors(WriteBatch* batch) {
  for (const NewTensor& tensor : new_tensors_) {
    const TensorRecord& record = tensor.record;
    if (!tensor.needed) {
      DropBlocks(record, batch);
      continue;
    }
    const Bytes value = Serialize(record);
    if (record.is_computed() && !ParseTensorRecord(value).ok()) return TooManyTensors();
    batch->Put(Family::kTensors, TensorKey(tensor.id), value);
    if (!record.encoding().may_be_base) continue;
    ForEachBase(record, [&](const TensorId& base) { batch->Put(Family::kEdges, EdgeKey(base, tensor.id), {}); });
  }
  for (const PlannedFile& file : files_) {
    for (const PlannedExtent& extent : file.extents) {
      if (!extent.sketch || (extent.made == nullptr && !extent.stored)) continue;
      if (!extent.stored && !extent.made->needed) continue;
      // A tensor that a removed model left behind has lost its sketch (Remove).
      const std::string key = TensorKey(IdOf(extent));
      if (extent.stored) {
        const Result<StoredValue> present = catalog_.store().Get(Family::kSketches, key);
        if (present.ok()) continue;
        if (present.status().code() != StatusCode::kNotFound) return present.status();
      }
      batch->Put(Family::kSketches, key, Serialize(*extent.sketch));
    }
  }
  return OkStatus();
}

FileRecord PushJob::RecordOf(const PlannedFile& file) {
  FileRecord record;
  record.kind = file.kind;
  record.bytes = file.source->bytes;
  for (const PlannedExtent& planned : file.extents) {
    Extent& extent = record.extents.emplace_back();
    extent.bytes = planned.source.bytes;
    if (planned.source.is_literal()) {
      extent.kind = Extent::Kind::kLiteral;
      extent.literal = planned.source.literal;
      continue;
    }
    extent.kind = planned.is_part ? Extent::Kind::kTensorPart : Extent::Kind::kTensor;
    extent.offset_bytes = planned.part_offset;
    extent.tensor = IdOf(planned);
    extent.name = planned.source.name;
  }
  return record;
}

ModelRecord PushJob::MakeModel() const {
  ModelRecord model;
  model.name = options_.name;
  model.created_ns = WallClockNs();
  model.push = push_;
  model.logical_bytes = source_.total_bytes();
  model.owner_uid = options_.owner_uid;
  model.allow_compact = options_.allow_compact && !options_.compact;
  if (options_.compact) {
    model.fidelity = Fidelity::kCompact;
    model.drift = CompactCoder::DriftOf(items_);
    const bool all = std::all_of(items_.begin(), items_.end(),
                                 [](const CompactItem& item) { return item.has_moments || item.has_rows; });
    model.drift_kind = all ? DriftKind::kMoments : DriftKind::kPlain;
    model.method = CompactMethod();
  }
  if (options_.derivation) {
    const ModelRecord& source = options_.derivation->source;
    model.derived = true;
    model.method = options_.derivation->recipe;
    model.fidelity = source.fidelity;
    model.drift = source.drift;
    model.drift_kind = source.drift_kind;
  }
  for (const PlannedFile& file : files_) {
    const SourceFile& source = *file.source;
    model.files.push_back({.path = source.path,
                           .sha256 = file.sha256,
                           .bytes = source.bytes,
                           .mode = file.mode & kFileModeBits,
                           .gid = source.gid,
                           .mtime_ns = source.mtime_ns});
  }
  return model;
}

Status PushJob::CountUsage(const CatalogMeta& meta, WriteBatch* batch) {
  std::vector<TensorId> replaced;
  for (const NewTensor& tensor : materialised_) {
    if (tensor.needed) replaced.push_back(tensor.id);
  }
  const Status added = AddUsage(catalog_.store(), meta, replaced, batch);
  if (added.ok() || !IsDamage(added)) return added;
  // Whoever counts then walks, and the first push or prune that can writes the figures again.
  batch->Delete(Family::kMeta, kUsageTotalsKey);
  return added;
}

// Loading it takes longer than all the rest of publishing in a store of many models.
Status PushJob::PrepareUpdate() {
  ASSIGN_OR_RETURN(const auto snapshot, catalog_.store().Snapshot());
  ASSIGN_OR_RETURN(const StoredValue meta, snapshot->Get(Family::kMeta, kCatalogMetaKey));
  Result<StoreUsage> usage = StoreUsage::Load(*snapshot);
  if (!usage.ok() && !IsDamage(usage.status())) return usage.status();
  ASSIGN_OR_RETURN(const CatalogMeta parsed, ParseCatalogMeta(meta.bytes()));
  update_.emplace(UsageOfUpdate{parsed.next_model, parsed.model_digest, std::move(usage)});
  return OkStatus();
}

bool PushJob::UpdateIsPrepared(const CatalogMeta& now) const {
  return update_ && update_->next_model == now.next_model && update_->model_digest == now.model_digest;
}

// Sketches of tensors that nothing needs without the replaced model: no later push may choose a base that only waits
// for prune. What is the base of a delta stays anyway, and so goes on serving as one. `batch` has the usage records of
// the new files.
Status PushJob::DropSketches(const ModelRecord& replaced, WriteBatch* batch) {
  const KvStore& store = catalog_.store();
  RETURN_IF_ERROR(update_->usage.status());
  const StoreUsage& usage = *update_->usage;
  const uint32_t index = usage.FindModel(replaced.name);
  if (index == StoreUsage::kMissing) return Internal("the model '" + replaced.name + "' is listed under another name");
  ModelLoss loss = LossOf(usage, index);
  for (const WriteBatch::Op& op : batch->ops()) {
    if (op.kind != WriteBatch::Op::Kind::kPut || op.family != Family::kMeta || !op.key.starts_with(kUsagePrefix))
      continue;
    ASSIGN_OR_RETURN(const UsageRecord file, ParseUsageRecord(AsBytes(op.value)));
    KeepForFile(usage, file, &loss);
  }
  for (const PlannedFile& planned : files_) {
    if (!planned.known || planned.repeats) continue;
    ASSIGN_OR_RETURN(const UsageRecord file, FindUsage(store, planned.sha256));
    KeepForFile(usage, file, &loss);
  }
  return RetireSketches(store, usage, replaced, loss, batch);
}

// Whether the bases of `base` lead back to `model`: two models may each have been updated to a finetune of the other.
bool PushJob::LeadsBack(ModelId base, ModelId model) const {
  std::set<ModelId> seen;
  while (base != 0 && base != model && seen.insert(base).second) {
    const std::optional<ModelEntry> next = catalog_.FindById(base);
    base = next ? next->base : 0;
  }
  return base != 0;
}

Result<uint64_t> PushJob::AddRecords(WriteBatch* batch) {
  RETURN_IF_ERROR(AddMaterialised(batch));
  RETURN_IF_ERROR(AddTensors(batch));
  for (const PlannedFile& file : files_) {
    if (file.known || file.repeats) continue;
    const Bytes value = Serialize(RecordOf(file));
    if (file.has_parts && !ParseFileRecord(value).ok()) return TooManyTensors();
    batch->Put(Family::kFiles, FileKey(file.sha256), value);
  }
  uint64_t block_bytes = 0;
  for (const NewTensors* tensors : {&new_tensors_, &materialised_}) {
    for (const NewTensor& tensor : *tensors) {
      if (tensor.needed) block_bytes += tensor.record.coded_bytes + tensor.record.block_count * kBlockKeyBytes;
    }
  }
  return block_bytes;
}

namespace {

// Files that the update leaves as they were came into the model when they did.
void KeepTimes(const ModelRecord& replaced, ModelRecord* model) {
  if (replaced.owner_uid != model->owner_uid) return;
  auto old = replaced.files.begin();
  for (ModelFile& file : model->files) {  // both are sorted by path
    while (old != replaced.files.end() && old->path < file.path) ++old;
    if (old == replaced.files.end()) return;
    if (old->path == file.path && old->sha256 == file.sha256 && old->mode == file.mode && old->gid == file.gid &&
        old->mtime_ns == file.mtime_ns)
      file.published_ns = old->published_ns != 0 ? old->published_ns : replaced.created_ns;
  }
}

}  // namespace

Status PushJob::Publish(const ModelRecord* base, PushReport* report) {
  MutexLock lock(catalog_.publish_mutex());
  ASSIGN_OR_RETURN(std::optional<ModelRecord> replaced, FindReplaced());
  for (int attempt = 0; replaced; ++attempt) {
    ASSIGN_OR_RETURN(const CatalogMeta now, catalog_.Meta());
    if (UpdateIsPrepared(now)) break;
    // Others go on publishing meanwhile, unless that has been in vain too often.
    if (attempt < kPrepareAttempts) {
      lock.Unlock();
      const Status prepared = PrepareUpdate();
      lock.Lock();
      RETURN_IF_ERROR(prepared);
    } else {
      RETURN_IF_ERROR(PrepareUpdate());
    }
    ASSIGN_OR_RETURN(replaced, FindReplaced());
  }
  RETURN_IF_ERROR(MarkNeeded());
  RETURN_IF_ERROR(YieldToRivals());
  RETURN_IF_ERROR(YieldDerived());
  ASSIGN_OR_RETURN(CatalogMeta meta, catalog_.Meta());

  WriteBatch batch;
  ASSIGN_OR_RETURN(const uint64_t block_bytes, AddRecords(&batch));
  kept_bytes_ = block_bytes;
  RETURN_IF_ERROR(CheckDerivation());
  if (options_.derivation) base = &options_.derivation->source;
  if (options_.compact) AddFeature(&meta, kCompactFeature);
  if (options_.derivation) AddFeature(&meta, kDerivedFeature);
  ModelRecord model = MakeModel();
  if (std::any_of(model.files.begin(), model.files.end(), IsExecutable)) AddFeature(&meta, kExecutableFeature);
  if (replaced) {
    // The model stays the same one to those that name it as their base.
    model.id = replaced->id;
    // Whoever compares times notices the update, also when the clock was set back.
    model.created_ns = std::max(model.created_ns, replaced->created_ns + 1);
    KeepTimes(*replaced, &model);
    if (base != nullptr) {
      const bool leads_back = LeadsBack(base->id, model.id);
      if (leads_back && options_.derivation)
        return InvalidArgument("'" + base->name + "' is made of '" + model.name +
                               "', or stored against it: each would keep the other for ever; give another name");
      if (leads_back) base = nullptr;
    }
  } else {
    model.id = meta.next_model++;
  }
  model.base = base == nullptr ? 0 : base->id;
  // The record holds the size it is part of; a second round settles the length of that number.
  const uint64_t others = block_bytes + batch.put_bytes() + model.name.size();
  for (int round = 0; round < 2; ++round) model.pushed_stored_bytes = others + Serialize(model).size();
  const ModelRecord* before = replaced ? &*replaced : nullptr;
  Catalog::AddChange(before, &model, &meta, &batch);
  const Status counted = CountUsage(meta, &batch);
  RETURN_IF_ERROR(GoOnDespite(counted));
  if (replaced && counted.ok()) RETURN_IF_ERROR(GoOnDespite(DropSketches(*replaced, &batch)));
  // Nothing may fail once the batch is written: what fails is rolled back.
  report->name = model.name;
  report->base = base == nullptr ? "" : base->name;
  report->logical_bytes = model.logical_bytes;
  report->stored_bytes = model.pushed_stored_bytes;
  report->verified = true;
  report->fidelity = model.fidelity;
  report->drift = model.drift;
  report->drift_kind = model.drift_kind;
  (model.derived ? report->recipe : report->method) = model.method;
  report->files = files_.size();
  CountLevels(report);
  Withdraw();  // readers find what is published; blocks of the rest go
  return catalog_.WriteChange(before, &model, batch);
}

void PushJob::CountLevels(PushReport* report) const {
  LevelBytes levels;
  for (const PlannedFile& file : files_) {
    if (file.known || file.repeats) {
      levels.identical_file += file.source->bytes;
      continue;
    }
    for (const PlannedExtent& extent : file.extents) {
      if (extent.source.is_literal()) {
        levels.content += extent.source.bytes;
      } else if (extent.stored || extent.repeats != nullptr) {
        levels.identical_tensor += extent.source.bytes;
      } else {
        LevelOf(levels, static_cast<uint8_t>(extent.made->record.encoding().encoding), !extent.source.name.empty()) +=
            extent.source.bytes;
      }
    }
  }
  report->identical_file_bytes = levels.identical_file;
  report->identical_tensor_bytes = levels.identical_tensor;
  report->self_bytes = levels.self;
  report->delta_bytes = levels.delta;
  report->raw_bytes = levels.raw;
  report->content_bytes = levels.content;
  report->compact_bytes = levels.compact;
  report->projected_bytes = levels.projected;
}

// Planning a compact push writes tokens that the next round supersedes; a tensor that another push stored at the same
// time, or that turns out to be stored already, was written for nothing.
Status PushJob::CollectOwnBlocks(uint64_t at_least) {
  const uint64_t written = writer_->written_bytes();
  const uint64_t vain = written - std::min(written, kept_bytes_);
  if (vain < std::max(at_least, written / kCollectedShare)) return OkStatus();
  // Collecting copies what lives beside it.
  ASSIGN_OR_RETURN(const bool has_room, HasRoomFor(kept_bytes_));
  if (kept_bytes_ > 0 && !has_room) return NoSpace(catalog_.dir() + " has too little free space for that");
  job_.Begin("giving space back", 0);
  return catalog_.store().CollectBlocks(BlockKeyPrefix(push_), BlockKeyPrefix(push_ + 1),
                                        [this] { return job_.cancelled(); });
}

void PushJob::RollBack() {
  Withdraw();
  kept_bytes_ = 0;
  WriteBatch batch;
  batch.DeleteRange(Family::kBlocks, BlockKeyPrefix(push_), BlockKeyPrefix(push_ + 1));
  Status removed = catalog_.store().Write(batch, Durability::kSync);
  if (removed.ok()) removed = CollectOwnBlocks(kCollectedByRollBack);
  // On a full disk even this may fail: prune finds the blocks of pushes that were never published.
  if (!removed.ok())
    job_.Warn("what this push had written could not be removed (" + removed.ToString() + "); run prune to free it");
}

}  // namespace modelstore
