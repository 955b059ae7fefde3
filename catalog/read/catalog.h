// Catalog: an open store with its models (layer: catalog/read). The one object that handlers, mount and write share.
//
// Thread-safe. Models are read through here; catalog/write changes them under publish_mutex() and then calls
// NotifyChanged.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/read/collect_gate.h"
#include "catalog/read/memory_shares.h"
#include "catalog/read/read_engine.h"
#include "catalog/read/worker_pool.h"
#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/support/mutex.h"

namespace modelstore {

struct CatalogOptions {
  bool create_if_missing = false;
  bool read_only = false;
  // Bounds caches and buffers together: RocksDB's, decoded blocks and what decoding them holds, those of pushes. What
  // the process takes besides is in docs/architecture.md, "Memory".
  uint64_t memory_budget_bytes = 1ull << 30;
  unsigned threads = 0;                          // 0: one a core
  std::function<Status(uint64_t)> before_write;  // StoreOptions::before_write
};

// What Catalog::FindModel and ListModels say, of a store or of a snapshot of it.
Result<ModelRecord> FindModel(const KvReader& store, std::string_view name);
Result<std::vector<ModelRecord>> ListModels(const KvReader& store);

// The failure of FindModel, for who must not tell a model that is hidden from one that is missing.
Status NoModelNamed(std::string_view name);

// What is known of every model without reading its record.
struct ModelEntry {
  std::string name;
  ModelId base = 0;
  PushId push = 0;
};

class Catalog {
 public:
  // Errors: as OpenRocksStore.
  static Result<std::unique_ptr<Catalog>> Open(const std::string& dir, const CatalogOptions& options);
  // For reading and writing; where the folder may not be written to, for reading alone: models stay readable there.
  // `why_read_only` is then the failure. Errors: as OpenRocksStore.
  static Result<std::unique_ptr<Catalog>> OpenToServe(const std::string& dir, CatalogOptions options,
                                                      Status* why_read_only);
  // Over a store of the caller's (tests).
  static Result<std::unique_ptr<Catalog>> OverStore(std::unique_ptr<KvStore> store, std::string dir,
                                                    const CatalogOptions& options);
  ~Catalog();

  const std::string& dir() const;
  KvStore& store();
  ReadEngine& reader();
  WorkerPool& pool();
  uint64_t memory_budget_bytes() const;
  // What of memory_budget_bytes() is for the buffers of pushes, and of reading whole files back (verify, export).
  uint64_t write_budget_bytes() const;
  // What of write_budget_bytes() pushes share.
  MemoryShares& push_memory();

  Result<ModelRecord> FindModel(std::string_view name) const;  // Errors: NotFound
  // All models, sorted by name.
  Result<std::vector<ModelRecord>> ListModels() const;
  Result<CatalogMeta> Meta() const;
  // From memory, however many models there are. Nothing when there is none of that id.
  std::optional<ModelEntry> FindById(ModelId id) const;
  // Whether some model names `id` as its base. From memory.
  bool IsBase(ModelId id) const;

  // Pushes share it for their whole length, prune and rm enter alone: nothing is collected under a push.
  CollectGate& collect_gate();
  // Held for the moment of publishing (read meta and models, write one batch).
  Mutex& publish_mutex();

  // Changes one model, under publish_mutex(): `before` goes (null: there was none), `after` comes. AddChange puts its
  // record and `meta`, with count and digest of the models as they are then, into `batch`; WriteChange writes the
  // batch, synced. Errors: as KvStore::Write.
  static void AddChange(const ModelRecord* before, const ModelRecord* after, CatalogMeta* meta, WriteBatch* batch);
  Status WriteChange(const ModelRecord* before, const ModelRecord* after, const WriteBatch& batch)
      MS_REQUIRES(publish_mutex());

  // Called (outside all locks) after models appeared, vanished, changed or got another name. `names`: of those models,
  // old and new.
  using OnChanged = std::function<void(const std::vector<std::string>& names)>;
  void SetOnChanged(OnChanged on_changed);
  void NotifyChanged(const std::vector<std::string>& names);

 private:
  struct Impl;
  explicit Catalog(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Tells the catalog's listener of a change when it goes, whatever failed after the change was published. It is made
// before that, since then nothing may fail, and outlives the locks.
class ChangeNotice {
 public:
  ChangeNotice(Catalog& catalog, std::vector<std::string> names) : catalog_(catalog), names_(std::move(names)) {}
  ~ChangeNotice();
  ChangeNotice(const ChangeNotice&) = delete;
  ChangeNotice& operator=(const ChangeNotice&) = delete;

  void Published() { published_ = true; }

 private:
  Catalog& catalog_;
  const std::vector<std::string> names_;
  bool published_ = false;
};

}  // namespace modelstore
