#include "catalog/write/store_usage.h"

#include <algorithm>
#include <bit>
#include <set>
#include <tuple>
#include <unordered_map>

#include "catalog/write/levels.h"

namespace modelstore {
namespace {

Result<CatalogMeta> ReadCatalogMeta(const KvReader& store) {
  const Result<StoredValue> value = store.Get(Family::kMeta, kCatalogMetaKey);
  if (value.ok()) return ParseCatalogMeta(value->bytes());
  if (value.status().code() == StatusCode::kNotFound) return CatalogMeta{};
  return value.status();
}

// The totals when every model in the store was published together with its usage records; nothing when another build
// wrote some, or totals that this one cannot parse.
Result<std::optional<UsageTotals>> ReadTotals(const KvReader& store, ModelId next_model) {
  const Result<StoredValue> value = store.Get(Family::kMeta, kUsageTotalsKey);
  if (!value.ok()) {
    if (value.status().code() == StatusCode::kNotFound) return std::optional<UsageTotals>();
    return value.status();
  }
  const Result<UsageTotals> totals = ParseUsageTotals(value->bytes());
  return totals.ok() && totals->next_model == next_model ? std::optional(*totals) : std::nullopt;
}

Result<Sha256Digest> DigestOf(std::string_view key) {
  Sha256Digest sha256;
  if (key.size() != sha256.size()) return Corruption("a file's key has " + std::to_string(key.size()) + " bytes");
  std::copy_n(AsBytes(key).begin(), sha256.size(), sha256.begin());
  return sha256;
}

// Tensor records by id, from the batch that publishes them or the store, each read once.
class TensorFacts {
 public:
  struct Facts {
    uint64_t cost_bytes = 0;
    uint8_t encoding = 0;
    std::vector<TensorId> bases, parts;
  };

  explicit TensorFacts(const KvReader& store) : store_(store) {}

  Status Add(const TensorId& id, ByteSpan value) {
    ASSIGN_OR_RETURN(const TensorRecord record, ParseTensorRecord(value));
    Facts& facts = known_[id].emplace();
    facts.cost_bytes = TensorCost(record, value.size());
    facts.encoding = static_cast<uint8_t>(record.encoding().encoding);
    ForEachBase(record, [&](const TensorId& base) { facts.bases.push_back(base); });
    ForEachPart(record, [&](const TensorId& part) { facts.parts.push_back(part); });
    return OkStatus();
  }

  // Null when the store lacks it.
  Result<const Facts*> Find(const TensorId& id) {
    auto it = known_.find(id);
    if (it == known_.end()) {
      const Result<StoredValue> value = store_.Get(Family::kTensors, TensorKey(id));
      if (value.ok()) {
        RETURN_IF_ERROR(Add(id, value->bytes()));
      } else if (value.status().code() == StatusCode::kNotFound) {
        known_[id] = std::nullopt;
      } else {
        return value.status();
      }
      it = known_.find(id);
    }
    return it->second ? &*it->second : nullptr;
  }

 private:
  const KvReader& store_;
  std::map<TensorId, std::optional<Facts>> known_;
};

Result<UsageRecord> MakeUsage(const FileRecord& file, size_t record_bytes, TensorFacts& tensors) {
  UsageRecord usage;
  usage.kind = file.kind;
  usage.cost_bytes = FileCost(record_bytes);
  std::map<TensorId, size_t> seen;  // where in usage.tensors
  std::vector<const TensorFacts::Facts*> held;
  const auto hold = [&](const TensorId& id, const TensorFacts::Facts& facts, uint64_t bytes, bool is_named,
                        bool in_parts) {
    if (!seen.emplace(id, held.size()).second) return false;
    usage.tensors.push_back({ShortTensorId(id), facts.cost_bytes, bytes, facts.encoding, is_named, in_parts});
    held.push_back(&facts);
    return true;
  };
  for (const Extent& extent : file.extents) {
    const TensorFacts::Facts* facts = nullptr;
    if (extent.kind != Extent::Kind::kLiteral) {
      ASSIGN_OR_RETURN(facts, tensors.Find(extent.tensor));
    }
    const bool is_part = extent.kind == Extent::Kind::kTensorPart;
    if (facts == nullptr) {
      usage.literal_bytes += extent.bytes;
    } else if (!hold(extent.tensor, *facts, extent.bytes, !extent.name.empty(), is_part)) {
      (is_part ? usage.tensors[seen[extent.tensor]].bytes : usage.repeated_bytes) += extent.bytes;
    }
  }
  for (size_t i = 0; i < held.size(); ++i) {
    for (const TensorId& part : held[i]->parts) {
      ASSIGN_OR_RETURN(const TensorFacts::Facts* facts, tensors.Find(part));
      if (facts != nullptr) hold(part, *facts, 0, false, false);
    }
  }
  std::vector<TensorId> pending;
  for (const TensorFacts::Facts* facts : held) pending.insert(pending.end(), facts->bases.begin(), facts->bases.end());
  while (!pending.empty()) {
    const TensorId base = pending.back();
    pending.pop_back();
    if (!seen.emplace(base, 0).second) continue;
    ASSIGN_OR_RETURN(const TensorFacts::Facts* facts, tensors.Find(base));
    if (facts == nullptr) continue;
    usage.bases.push_back({ShortTensorId(base), facts->cost_bytes});
    pending.insert(pending.end(), facts->bases.begin(), facts->bases.end());
    pending.insert(pending.end(), facts->parts.begin(), facts->parts.end());
  }
  SortBases(&usage);
  return usage;
}

UsageTotals TotalsOf(const StoreWalk& walk, ModelId next_model) { return {next_model, walk.TotalCost()}; }

}  // namespace

void SortBases(UsageRecord* usage) {
  std::sort(usage->bases.begin(), usage->bases.end(), [](const UsageRecord::Base& a, const UsageRecord::Base& b) {
    return std::tie(a.id, a.cost_bytes) < std::tie(b.id, b.cost_bytes);
  });
}

void StoreUsage::Index::Reserve(size_t more) {
  const size_t wanted = 2 * (used_ + more);
  if (wanted <= slots_.size()) return;
  const size_t slots = std::bit_ceil(2 * wanted);
  const std::vector<Entry> old = std::exchange(slots_, std::vector<Entry>(slots));
  shift_ = static_cast<unsigned>(std::countl_zero(slots)) + 1;
  for (const Entry& entry : old) {
    if (entry.index == kMissing) continue;
    size_t at = Slot(entry.id);
    while (slots_[at].index != kMissing) at = (at + 1) % slots;
    slots_[at] = entry;
  }
}

uint32_t StoreUsage::Index::FindOrAdd(uint64_t id, uint32_t next) {
  for (size_t at = Slot(id);; at = (at + 1) % slots_.size()) {
    Entry& entry = slots_[at];
    if (entry.index == kMissing) {
      entry = {id, next};
      ++used_;
    }
    if (entry.id == id) return entry.index;
  }
}

uint32_t StoreUsage::Index::Find(uint64_t id) const {
  for (size_t at = Slot(id);; at = (at + 1) % slots_.size()) {
    const Entry& entry = slots_[at];
    if (entry.index == kMissing || entry.id == id) return entry.index;
  }
}

Result<StoreUsage> StoreUsage::Load(const KvReader& store) {
  const auto from_walk = [&]() -> Result<StoreUsage> {
    ASSIGN_OR_RETURN(const StoreWalk walk, StoreWalk::Load(store));
    return FromWalk(walk);
  };
  ASSIGN_OR_RETURN(const CatalogMeta meta, ReadCatalogMeta(store));
  ASSIGN_OR_RETURN(const std::optional<UsageTotals> totals, ReadTotals(store, meta.next_model));
  if (!totals) return from_walk();
  StoreUsage usage;
  usage.total_bytes_ = totals->cost_bytes;
  RETURN_IF_ERROR(store.Scan(Family::kModels, "", [&](std::string_view key, ByteSpan value) -> Status {
    ASSIGN_OR_RETURN(ModelRecord record, ParseModelRecord(value));
    usage.AddModel(std::move(record), key.size() + value.size());
    return OkStatus();
  }));
  RETURN_IF_ERROR(store.Scan(Family::kMeta, kUsagePrefix, [&](std::string_view key, ByteSpan value) -> Status {
    const Result<Sha256Digest> sha256 = DigestOf(key.substr(kUsagePrefix.size()));
    if (!sha256.ok() || !usage.file_index_.contains(*sha256)) return OkStatus();
    // One that another build wrote is as good as none.
    if (const Result<UsageRecord> record = ParseUsageRecord(value); record.ok()) usage.AddFile(*sha256, *record);
    return OkStatus();
  }));
  for (const auto& [sha256, index] : usage.file_index_) {
    if (index != kMissing) continue;
    // A damaged store lacks the file itself; one that lacks only its usage record gets a walk.
    const Result<StoredValue> file = store.Get(Family::kFiles, FileKey(sha256));
    if (file.ok()) return from_walk();
    if (file.status().code() != StatusCode::kNotFound) return file.status();
  }
  usage.LinkFiles();
  return usage;
}

Result<StoreUsage> StoreUsage::FromWalk(const StoreWalk& walk) {
  StoreUsage usage;
  usage.total_bytes_ = walk.TotalCost();
  for (const StoreWalk::Model& model : walk.models()) usage.AddModel(model.record, model.cost);
  for (const StoreWalk::File& file : walk.files()) {
    if (usage.file_index_.contains(file.sha256)) usage.AddFile(file.sha256, walk.UsageOf(file));
  }
  usage.LinkFiles();
  return usage;
}

void StoreUsage::AddModel(ModelRecord record, uint64_t cost_bytes) {
  for (const ModelFile& file : record.files) file_index_.emplace(file.sha256, kMissing);
  Model& model = models_.emplace_back();
  model.record = std::move(record);
  model.cost_bytes = cost_bytes;
}

void StoreUsage::AddFile(const Sha256Digest& sha256, const UsageRecord& usage) {
  file_index_.at(sha256) = static_cast<uint32_t>(files_.size());
  File& file = files_.emplace_back();
  file.kind = usage.kind;
  file.cost_bytes = usage.cost_bytes;
  file.literal_bytes = usage.literal_bytes;
  file.repeated_bytes = usage.repeated_bytes;
  file.bytes = usage.literal_bytes + usage.repeated_bytes;
  needed_bytes_ += usage.cost_bytes;
  // The table is larger than the core's caches: without prefetching its misses are most of the time of `ls`.
  index_.Reserve(usage.tensors.size() + usage.bases.size());
  for (const UsageRecord::Tensor& tensor : usage.tensors) index_.Prefetch(tensor.id);
  for (const UsageRecord::Base& base : usage.bases) index_.Prefetch(base.id);
  file.first_tensor = held_.size();
  for (const UsageRecord::Tensor& tensor : usage.tensors) {
    held_.push_back(
        {AddTensor(tensor.id, tensor.cost_bytes), tensor.encoding, tensor.is_named, tensor.in_parts, tensor.bytes});
    file.bytes += tensor.bytes;
  }
  file.end_tensor = held_.size();
  file.first_base = bases_.size();
  for (const UsageRecord::Base& base : usage.bases) bases_.push_back(AddTensor(base.id, base.cost_bytes));
  file.end_base = bases_.size();
}

uint32_t StoreUsage::AddTensor(uint64_t id, uint64_t cost_bytes) {
  const uint32_t index = index_.FindOrAdd(id, static_cast<uint32_t>(tensor_costs_.size()));
  if (index == tensor_costs_.size()) {
    tensor_costs_.push_back(cost_bytes);
    needed_bytes_ += cost_bytes;
  }
  return index;
}

void StoreUsage::LinkFiles() {
  for (Model& model : models_) {
    for (const ModelFile& file : model.record.files) model.files.push_back(file_index_.at(file.sha256));
  }
}

uint32_t StoreUsage::FindModel(std::string_view name) const {
  const auto it = std::find_if(models_.begin(), models_.end(), [&](const Model& m) { return m.record.name == name; });
  return it == models_.end() ? kMissing : static_cast<uint32_t>(it - models_.begin());
}

bool IsDamage(const Status& status) {
  return status.code() == StatusCode::kCorruption || status.code() == StatusCode::kUnsupported ||
         status.code() == StatusCode::kIo;
}

namespace {

// The stored files that need one of `tensors`, by their usage records.
Result<std::vector<Sha256Digest>> FilesThatNeed(const KvReader& store, std::span<const TensorId> tensors) {
  std::vector<Sha256Digest> files;
  if (tensors.empty()) return files;
  std::set<uint64_t> wanted;
  for (const TensorId& id : tensors) wanted.insert(ShortTensorId(id));
  RETURN_IF_ERROR(store.Scan(Family::kMeta, kUsagePrefix, [&](std::string_view key, ByteSpan value) -> Status {
    const Result<Sha256Digest> sha256 = DigestOf(key.substr(kUsagePrefix.size()));
    const Result<UsageRecord> usage = ParseUsageRecord(value);
    if (!sha256.ok() || !usage.ok()) return OkStatus();  // as good as none
    const auto is_wanted = [&](const auto& tensor) { return wanted.contains(tensor.id); };
    if (std::ranges::any_of(usage->tensors, is_wanted) || std::ranges::any_of(usage->bases, is_wanted))
      files.push_back(*sha256);
    return OkStatus();
  }));
  return files;
}

}  // namespace

Status AddUsage(KvStore& store, const CatalogMeta& meta, std::span<const TensorId> replaced, WriteBatch* batch) {
  ASSIGN_OR_RETURN(const CatalogMeta before, ReadCatalogMeta(store));
  ASSIGN_OR_RETURN(std::optional<UsageTotals> totals, ReadTotals(store, before.next_model));
  if (!totals) {
    RETURN_IF_ERROR(RepairUsage(store));
    ASSIGN_OR_RETURN(totals, ReadTotals(store, before.next_model));
    if (!totals) return Corruption("the store lost the usage totals that were just written");
  }
  TensorFacts tensors(store);
  WriteBatch usages, renewed;
  for (const WriteBatch::Op& op : batch->ops()) {
    if (op.kind != WriteBatch::Op::Kind::kPut || op.family != Family::kTensors) continue;
    ASSIGN_OR_RETURN(const TensorId id, ParseTensorKey(op.key));
    RETURN_IF_ERROR(tensors.Add(id, AsBytes(op.value)));
    ASSIGN_OR_RETURN(const TensorFacts::Facts* facts, tensors.Find(id));
    totals->cost_bytes += facts->cost_bytes;
  }
  for (const WriteBatch::Op& op : batch->ops()) {
    if (op.kind != WriteBatch::Op::Kind::kPut || op.family != Family::kFiles) continue;
    ASSIGN_OR_RETURN(const Sha256Digest sha256, DigestOf(op.key));
    ASSIGN_OR_RETURN(const FileRecord file, ParseFileRecord(AsBytes(op.value)));
    ASSIGN_OR_RETURN(const UsageRecord usage, MakeUsage(file, op.value.size(), tensors));
    usages.Put(Family::kMeta, UsageKey(sha256), Serialize(usage));
    totals->cost_bytes += usage.cost_bytes;
    // A record that replaces a damaged one.
    const Result<StoredValue> old = store.Get(Family::kFiles, op.key);
    if (old.ok()) {
      totals->cost_bytes -= FileCost(old->bytes().size());
    } else if (old.status().code() != StatusCode::kNotFound) {
      return old.status();
    }
  }
  // Files that others published with what has another cost now.
  for (const TensorId& id : replaced) {
    ASSIGN_OR_RETURN(const StoredValue old, store.Get(Family::kTensors, TensorKey(id)));
    ASSIGN_OR_RETURN(const TensorRecord record, ParseTensorRecord(old.bytes()));
    totals->cost_bytes -= TensorCost(record, old.bytes().size());
  }
  ASSIGN_OR_RETURN(const std::vector<Sha256Digest> others, FilesThatNeed(store, replaced));
  for (const Sha256Digest& sha256 : others) {
    const Result<StoredValue> value = store.Get(Family::kFiles, FileKey(sha256));
    if (value.status().code() == StatusCode::kNotFound) continue;
    RETURN_IF_ERROR(value.status());
    ASSIGN_OR_RETURN(const FileRecord file, ParseFileRecord(value->bytes()));
    ASSIGN_OR_RETURN(const UsageRecord usage, MakeUsage(file, value->bytes().size(), tensors));
    renewed.Put(Family::kMeta, UsageKey(sha256), Serialize(usage));
  }
  for (const WriteBatch::Op& op : renewed.ops()) batch->Put(op.family, op.key, AsBytes(op.value));
  // Behind those: a file whose record this batch replaces has its usage made from the new one.
  for (const WriteBatch::Op& op : usages.ops()) batch->Put(op.family, op.key, AsBytes(op.value));
  totals->next_model = meta.next_model;
  batch->Put(Family::kMeta, kUsageTotalsKey, Serialize(*totals));
  return OkStatus();
}

Result<UsageRecord> FindUsage(const KvReader& store, const Sha256Digest& sha256) {
  const Result<StoredValue> kept = store.Get(Family::kMeta, UsageKey(sha256));
  if (kept.ok()) {
    Result<UsageRecord> usage = ParseUsageRecord(kept->bytes());
    if (usage.ok()) return usage;
  } else if (kept.status().code() != StatusCode::kNotFound) {
    return kept.status();
  }
  ASSIGN_OR_RETURN(const StoredValue value, store.Get(Family::kFiles, FileKey(sha256)));
  ASSIGN_OR_RETURN(const FileRecord file, ParseFileRecord(value.bytes()));
  TensorFacts tensors(store);
  return MakeUsage(file, value.bytes().size(), tensors);
}

Result<bool> UsageIsKept(const KvReader& store) {
  ASSIGN_OR_RETURN(const CatalogMeta meta, ReadCatalogMeta(store));
  ASSIGN_OR_RETURN(const std::optional<UsageTotals> totals, ReadTotals(store, meta.next_model));
  return totals.has_value();
}

Result<WriteBatch> UsageRepairs(const KvReader& store, const StoreWalk& walk) {
  std::map<std::string, Bytes> wanted;
  for (const StoreWalk::File& file : walk.files()) wanted[UsageKey(file.sha256)] = Serialize(walk.UsageOf(file));
  ASSIGN_OR_RETURN(const CatalogMeta meta, ReadCatalogMeta(store));
  wanted[std::string(kUsageTotalsKey)] = Serialize(TotalsOf(walk, meta.next_model));
  WriteBatch repairs;
  RETURN_IF_ERROR(store.Scan(Family::kMeta, kUsageTotalsKey, [&](std::string_view key, ByteSpan value) -> Status {
    const auto it = wanted.find(std::string(key));
    if (it == wanted.end()) {
      repairs.Delete(Family::kMeta, key);
    } else if (std::ranges::equal(it->second, value)) {
      wanted.erase(it);
    }
    return OkStatus();
  }));
  for (const auto& [key, value] : wanted) repairs.Put(Family::kMeta, key, value);
  return repairs;
}

Status RepairUsage(KvStore& store) {
  ASSIGN_OR_RETURN(const StoreWalk walk, StoreWalk::Load(store));
  ASSIGN_OR_RETURN(const WriteBatch repairs, UsageRepairs(store, walk));
  return repairs.empty() ? OkStatus() : store.Write(repairs, Durability::kSync);
}

}  // namespace modelstore
