#include "catalog/read/catalog.h"

#include <algorithm>
#include <map>
#include <utility>

#include "catalog/schema/check.h"
#include "codec/support/guarded.h"
#include "codec/support/log.h"

namespace modelstore {
namespace {

// How the memory budget is split: RocksDB a quarter (more than 256 MiB does not help it), the buffers of pushes a
// quarter up to 1 GiB or an eighth if that is more (a compact push holds a large layer as floats), decoded blocks the
// rest.
struct BudgetShares {
  uint64_t store_bytes, write_bytes, read_bytes;
};

Result<BudgetShares> SplitBudget(uint64_t budget_bytes) {
  constexpr uint64_t kMinBudgetBytes = 2 * kMinReadBudgetBytes;
  // Reading whole files back takes at most a quarter of the write share (ReadWholeFile), pushes the rest.
  static_assert(kMinBudgetBytes / 4 / 4 * 3 >= MemoryShares::kMinShareBytes);
  if (budget_bytes < kMinBudgetBytes) {
    return InvalidArgument("a memory budget of " + std::to_string(budget_bytes) + " bytes is too small; at least " +
                           std::to_string(kMinBudgetBytes) + " are needed");
  }
  const uint64_t store_bytes = std::min<uint64_t>(budget_bytes / 4, 256ull << 20);
  const uint64_t write_bytes = std::max(std::min<uint64_t>(budget_bytes / 4, 1ull << 30), budget_bytes / 8);
  return BudgetShares{store_bytes, write_bytes, budget_bytes - store_bytes - write_bytes};
}

}  // namespace

Status NoModelNamed(std::string_view name) {
  return NotFound("no model named " + std::string(name) + "; `modelstore ls` lists what is stored");
}

Result<ModelRecord> FindModel(const KvReader& store, std::string_view name) {
  auto value = store.Get(Family::kModels, name);
  if (!value.ok()) {
    if (value.status().code() == StatusCode::kNotFound) return NoModelNamed(name);
    return value.status().WithContext("model " + std::string(name));
  }
  auto record = ParseModelRecord(value->bytes());
  if (!record.ok()) return record.status().WithContext("model " + std::string(name));
  return record;
}

Result<std::vector<ModelRecord>> ListModels(const KvReader& store) {
  std::vector<ModelRecord> models;
  RETURN_IF_ERROR(store.Scan(Family::kModels, "", [&](std::string_view name, ByteSpan value) -> Status {
    auto record = ParseModelRecord(value);
    if (!record.ok()) return record.status().WithContext("model " + std::string(name));
    models.push_back(std::move(*record));
    return OkStatus();
  }));
  return models;
}

struct Catalog::Impl {
  Impl(std::unique_ptr<KvStore> the_store, std::string the_dir, const CatalogOptions& options,
       const BudgetShares& the_shares)
      : dir(std::move(the_dir)),
        read_only(options.read_only),
        shares(the_shares),
        push_memory(shares.write_bytes - shares.write_bytes / 4),
        store(std::move(the_store)),
        pool(options.threads),
        reader(*store, pool, ReadOptions{.memory_budget_bytes = shares.read_bytes}) {}

  const std::string dir;
  const bool read_only;
  const BudgetShares shares;
  MemoryShares push_memory;
  const std::unique_ptr<KvStore> store;
  WorkerPool pool;
  ReadEngine reader;
  CollectGate collect_gate;
  Mutex publish_mutex MS_ACQUIRED_BEFORE(entries_mutex);

  mutable Mutex entries_mutex;
  std::map<ModelId, ModelEntry> entries MS_GUARDED_BY(entries_mutex);

  Mutex callback_mutex;
  std::shared_ptr<const OnChanged> on_changed MS_GUARDED_BY(callback_mutex);  // null: nobody listens
};

Catalog::Catalog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Catalog::~Catalog() = default;

Result<std::unique_ptr<Catalog>> Catalog::Open(const std::string& dir, const CatalogOptions& options) {
  ASSIGN_OR_RETURN(const BudgetShares shares, SplitBudget(options.memory_budget_bytes));
  StoreOptions store_options;
  store_options.create_if_missing = options.create_if_missing;
  store_options.read_only = options.read_only;
  store_options.memory_budget_bytes = shares.store_bytes;
  store_options.before_write = options.before_write;
  ASSIGN_OR_RETURN(std::unique_ptr<KvStore> store, OpenRocksStore(dir, store_options));
  return OverStore(std::move(store), dir, options);
}

Result<std::unique_ptr<Catalog>> Catalog::OpenToServe(const std::string& dir, CatalogOptions options,
                                                      Status* why_read_only) {
  Result<std::unique_ptr<Catalog>> writable = Open(dir, options);
  if (writable.ok() || writable.status().code() != StatusCode::kPermissionDenied) return writable;
  options.create_if_missing = false;
  options.read_only = true;
  Result<std::unique_ptr<Catalog>> readable = Open(dir, options);
  if (!readable.ok()) return writable;
  *why_read_only = writable.status();
  return readable;
}

Result<std::unique_ptr<Catalog>> Catalog::OverStore(std::unique_ptr<KvStore> store, std::string dir,
                                                    const CatalogOptions& options) {
  ASSIGN_OR_RETURN(const BudgetShares shares, SplitBudget(options.memory_budget_bytes));
  CatalogMeta meta;
  std::map<ModelId, ModelEntry> entries;
  Status status = CheckCatalog(*store, &meta, [&](const ModelRecord& model) {
    entries[model.id] = {model.name, model.base, model.push};
  });
  if (!status.ok()) return status.WithContext("store " + dir);
  const auto stored = store->Get(Family::kMeta, kCatalogMetaKey);
  if (!stored.ok()) {
    if (stored.status().code() != StatusCode::kNotFound) return stored.status().WithContext("store " + dir);
    if (!options.read_only) {
      WriteBatch batch;
      batch.Put(Family::kMeta, kCatalogMetaKey, Serialize(meta));
      status = store->Write(batch, Durability::kSync);
      if (!status.ok()) return status.WithContext("store " + dir);
    }
  }
  auto impl = std::make_unique<Impl>(std::move(store), std::move(dir), options, shares);
  {
    const MutexLock lock(impl->entries_mutex);
    impl->entries = std::move(entries);
  }
  return std::unique_ptr<Catalog>(new Catalog(std::move(impl)));
}

const std::string& Catalog::dir() const { return impl_->dir; }
KvStore& Catalog::store() { return *impl_->store; }
ReadEngine& Catalog::reader() { return impl_->reader; }
WorkerPool& Catalog::pool() { return impl_->pool; }
uint64_t Catalog::memory_budget_bytes() const {
  return impl_->shares.store_bytes + impl_->shares.write_bytes + impl_->shares.read_bytes;
}
uint64_t Catalog::write_budget_bytes() const { return impl_->shares.write_bytes; }

MemoryShares& Catalog::push_memory() { return impl_->push_memory; }

Result<ModelRecord> Catalog::FindModel(std::string_view name) const {
  return modelstore::FindModel(*impl_->store, name);
}
Result<std::vector<ModelRecord>> Catalog::ListModels() const { return modelstore::ListModels(*impl_->store); }

Result<CatalogMeta> Catalog::Meta() const {
  auto value = impl_->store->Get(Family::kMeta, kCatalogMetaKey);
  if (value.ok()) return ParseCatalogMeta(value->bytes());
  if (value.status().code() != StatusCode::kNotFound) return value.status();
  // A new store gets the record when it is first opened for writing.
  if (impl_->read_only) return CatalogMeta{};
  return Corruption("store " + impl_->dir + ": its catalog record vanished");
}

std::optional<ModelEntry> Catalog::FindById(ModelId id) const {
  const MutexLock lock(impl_->entries_mutex);
  const auto it = impl_->entries.find(id);
  return it == impl_->entries.end() ? std::nullopt : std::optional(it->second);
}

bool Catalog::IsBase(ModelId id) const {
  const MutexLock lock(impl_->entries_mutex);
  return std::any_of(impl_->entries.begin(), impl_->entries.end(),
                     [&](const auto& entry) { return entry.second.base == id; });
}

void Catalog::AddChange(const ModelRecord* before, const ModelRecord* after, CatalogMeta* meta, WriteBatch* batch) {
  if (before != nullptr) {
    meta->model_count -= 1;
    meta->model_digest ^= ModelDigest(*before);
    if (after == nullptr || after->name != before->name) batch->Delete(Family::kModels, before->name);
  }
  if (after != nullptr) {
    meta->model_count += 1;
    meta->model_digest ^= ModelDigest(*after);
    batch->Put(Family::kModels, after->name, Serialize(*after));
  }
  batch->Put(Family::kMeta, kCatalogMetaKey, Serialize(*meta));
}

Status Catalog::WriteChange(const ModelRecord* before, const ModelRecord* after, const WriteBatch& batch) {
  // All the memory that the entry takes is taken first: the caller withdraws what it wrote when this fails, which it
  // may not do any more once the batch is written.
  std::map<ModelId, ModelEntry> added;
  if (after != nullptr) added[after->id] = {after->name, after->base, after->push};
  RETURN_IF_ERROR(impl_->store->Write(batch, Durability::kSync));
  const MutexLock lock(impl_->entries_mutex);
  if (before != nullptr) impl_->entries.erase(before->id);
  impl_->entries.merge(added);
  return OkStatus();
}

CollectGate& Catalog::collect_gate() { return impl_->collect_gate; }
Mutex& Catalog::publish_mutex() { return impl_->publish_mutex; }

void Catalog::SetOnChanged(OnChanged on_changed) {
  auto kept = on_changed ? std::make_shared<const OnChanged>(std::move(on_changed)) : nullptr;
  const MutexLock lock(impl_->callback_mutex);
  impl_->on_changed = std::move(kept);
}

void Catalog::NotifyChanged(const std::vector<std::string>& names) {
  // No copy of the function: that takes memory, and what was published must be heard of.
  std::shared_ptr<const OnChanged> on_changed;
  {
    const MutexLock lock(impl_->callback_mutex);
    on_changed = impl_->on_changed;
  }
  if (on_changed) (*on_changed)(names);
}

ChangeNotice::~ChangeNotice() {
  if (!published_) return;
  const Status told = Guarded([this] {
    catalog_.NotifyChanged(names_);
    return OkStatus();
  });
  if (!told.ok()) Log(LogLevel::kError, "what lists the models was not told of a change: " + told.ToString());
}

}  // namespace modelstore
