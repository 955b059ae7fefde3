// KvStore on RocksDB 7.8 with integrated BlobDB. docs/format.md, "Folder", says what its files mean.
#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <rocksdb/write_buffer_manager.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <future>
#include <system_error>

#include "catalog/store/blob_references.h"
#include "catalog/store/crc32c.h"
#include "catalog/store/file_checksum.h"
#include "catalog/store/hooked_env.h"
#include "catalog/store/kv_store.h"
#include "catalog/store/store_folder.h"
#include "codec/support/guarded.h"
#include "codec/support/hash.h"
#include "codec/support/mutex.h"
#include "codec/support/thread.h"

namespace modelstore {
namespace {

constexpr uint64_t kMiB = 1 << 20;

rocksdb::Slice ToSlice(std::string_view s) { return {s.data(), s.size()}; }
ByteSpan ToSpan(const rocksdb::Slice& s) { return AsBytes({s.data(), s.size()}); }
std::string_view ToView(const rocksdb::Slice& s) { return {s.data(), s.size()}; }

// RocksDB keeps only a sub-code for a full disk; the other causes are in the text it got from strerror.
bool Mentions(const std::string& text, int error_number) {
  return text.find(std::generic_category().message(error_number)) != std::string::npos;
}

// DB::Open of 9.x puts some failures into a new status that has lost the sub-code.
bool OutOfSpace(const rocksdb::Status& s) {
  if (s.IsNoSpace()) return true;
  if (!s.IsIOError()) return false;
  const std::string text = s.ToString();
  return Mentions(text, ENOSPC) || Mentions(text, EDQUOT);
}

Status FromRocks(const rocksdb::Status& s, std::string_view what) {
  if (s.ok()) return OkStatus();
  const std::string text = s.ToString();
  StatusCode code = StatusCode::kIo;
  if (OutOfSpace(s)) {
    code = StatusCode::kNoSpace;
  } else if (s.IsCorruption()) {
    code = StatusCode::kCorruption;
  } else if (s.IsNotFound()) {
    code = StatusCode::kNotFound;
  } else if (s.IsMemoryLimit() || Mentions(text, EMFILE) || Mentions(text, ENOMEM) || Mentions(text, EFBIG)) {
    code = StatusCode::kResourceExhausted;
  } else if (s.IsBusy() || s.IsTryAgain() || s.IsTimedOut()) {
    code = StatusCode::kBusy;
  } else if (Mentions(text, EACCES) || Mentions(text, EPERM) || Mentions(text, EROFS)) {
    code = StatusCode::kPermissionDenied;
  } else if (s.IsNotSupported()) {
    code = StatusCode::kUnsupported;
  } else if (s.IsManualCompactionPaused()) {
    code = StatusCode::kCancelled;
  } else if (s.IsInvalidArgument()) {
    code = StatusCode::kInternal;
  }
  return Status(code, std::string(what) + ": " + text);
}

std::string InFamily(std::string_view verb, Family family) {
  return std::string(verb) + " family " + std::string(FamilyName(family));
}

// RocksDB's own log: 100 KB an opening, mostly its options. Errors reach us by their status.
class NullLogger final : public rocksdb::Logger {
 public:
  NullLogger() : Logger(rocksdb::InfoLogLevel::FATAL_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

// RocksDB would resume by itself once there is space; CheckWritable says why it must not.
class NoAutomaticRecovery final : public rocksdb::EventListener {
 public:
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status, bool* auto_recovery) override {
    *auto_recovery = false;
  }
};

// Threads of RocksDB for compactions and for flushes.
constexpr int kLowThreads = 1, kHighThreads = 1;

// RocksDB starts its threads when there is work for them, holding locks that it leaves taken where the system refuses
// one. Here nothing is lost by that, and later none is started.
Status StartBackgroundThreads(rocksdb::Env* env) {
  return Guarded([&] {
    env->IncBackgroundThreadsIfNeeded(kLowThreads, rocksdb::Env::LOW);
    env->IncBackgroundThreadsIfNeeded(kHighThreads, rocksdb::Env::HIGH);
    return OkStatus();
  });
}

struct MemoryPlan {
  uint64_t block_cache, write_buffers, blocks_memtable, other_memtable;
};

// The budget covers RocksDB's cache and all memtables: of kBlocks one being filled and one being flushed, the others'
// stay small.
MemoryPlan PlanMemory(uint64_t budget) {
  budget = std::max(budget, 16 * kMiB);
  MemoryPlan plan{};
  plan.block_cache = budget / 4;
  plan.write_buffers = budget - plan.block_cache;
  plan.blocks_memtable = std::clamp(plan.write_buffers / 3, 4 * kMiB, 64 * kMiB);
  plan.other_memtable = std::clamp(budget / 64, kMiB, 8 * kMiB);
  return plan;
}

rocksdb::DBOptions MakeDbOptions(const MemoryPlan& memory, rocksdb::Env* env) {
  rocksdb::DBOptions db;
  db.env = env;
  db.create_if_missing = true;  // only reached when the folder allows it
  db.create_missing_column_families = true;
  db.paranoid_checks = true;
  db.info_log = std::make_shared<NullLogger>();
  db.max_open_files = static_cast<int>(StoreDescriptors());
  db.max_background_jobs = kLowThreads + kHighThreads;
  // More would be started inside of DB::Open, which ends the program where the system refuses one of them.
  db.max_file_opening_threads = 1;
  db.max_total_wal_size = 8 * kMiB;
  db.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(memory.write_buffers);
  db.allow_fallocate = false;  // else 4 MiB for every MANIFEST
  db.db_host_id = "";          // no SST names the machine that wrote it
  db.bytes_per_sync = kMiB;    // so that the sync at a flush's end has little left to do
  db.track_and_verify_wals_in_manifest = true;
  // A kill tears the last record of the log, which was not acknowledged; anything else wrong in it is corruption, where
  // the default mode would silently stop replaying.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // What Flush did not promise need not survive: an aborted push is not written out on closing.
  db.avoid_flush_during_shutdown = true;
  db.listeners.push_back(std::make_shared<NoAutomaticRecovery>());
  db.max_bgerror_resume_count = 0;
  db.stats_dump_period_sec = 0;
  db.stats_persist_period_sec = 0;
  db.skip_stats_update_on_db_open = true;
  // The only checksums that VerifyChecksums can compare for blob files without looking up every key.
  db.file_checksum_gen_factory = NewFileChecksumFactory();
  return db;
}

rocksdb::ColumnFamilyOptions MakeFamilyOptions(Family family, const MemoryPlan& memory,
                                               const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions cf;
  cf.write_buffer_size = memory.other_memtable;
  cf.max_write_buffer_number = 2;
  cf.level_compaction_dynamic_level_bytes = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.format_version = 5;
  cf.compression = rocksdb::kZSTD;
  // Sampled values do not compress, and every push reads them all.
  if (family == Family::kSketches) {
    cf.compression = rocksdb::kNoCompression;
    table.block_size = 64 << 10;
  }
  // Every push flushes its records, whose keys are hashes: each compaction rewrites all of a family. After 4 pushes,
  // RocksDB's default, that would cost more than the pushes in a store of 1,000 models.
  // With few descriptors earlier: reading a family, and compacting it, opens all of these files at once.
  const int files = std::clamp(static_cast<int>(StoreDescriptors() / 4), 4, 32);
  cf.level0_file_num_compaction_trigger = files;
  cf.level0_slowdown_writes_trigger = 2 * files;
  cf.level0_stop_writes_trigger = 3 * files;
  if (family == Family::kBlocks) {
    cf.write_buffer_size = memory.blocks_memtable;
    cf.enable_blob_files = true;
    cf.min_blob_size = 1024;
    cf.blob_file_size = 256 * kMiB;
    cf.blob_compression_type = rocksdb::kNoCompression;  // values are entropy-coded
    // Ordinary compactions never copy a value; CollectGarbage does, where it pays.
    cf.enable_blob_garbage_collection = false;
    // Small SSTs (45 bytes a value) are what it copies at a time: about 3,000 values.
    cf.target_file_size_base = 128 << 10;
    cf.table_properties_collector_factories.push_back(NewBlobReferencesCollector());
  }
  cf.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return cf;
}

// The first key after every key that starts with `prefix`; "" when there is none.
std::string PrefixEnd(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (!end.empty()) ++end.back();
  return end;
}

// The reads of a store and of its snapshots.
template <typename Interface>
class RocksReads : public Interface {
 public:
  Result<StoredValue> Get(Family family, std::string_view key) const override {
    auto value = std::make_shared<rocksdb::PinnableSlice>();
    const rocksdb::Status s = reads_->Get(Options(), Handle(family), ToSlice(key), value.get());
    return Wrap(family, key, s, std::move(value));
  }

  std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
    std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
    std::vector<rocksdb::PinnableSlice> values(keys.size());
    std::vector<rocksdb::Status> statuses(keys.size());
    reads_->MultiGet(Options(), Handle(family), keys.size(), slices.data(), values.data(), statuses.data());
    std::vector<Result<StoredValue>> out;
    out.reserve(keys.size());
    for (size_t i = 0; i < keys.size(); ++i)
      out.push_back(Wrap(family, keys[i], statuses[i], std::make_shared<rocksdb::PinnableSlice>(std::move(values[i]))));
    return out;
  }

  Status Scan(Family family, std::string_view prefix,
              const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
    return Iterate(family, prefix,
                   [&](const rocksdb::Iterator& it) { return visit(ToView(it.key()), ToSpan(it.value())); });
  }

  Status ScanKeys(Family family, std::string_view prefix,
                  const std::function<Status(std::string_view)>& visit) const override {
    if (family == Family::kBlocks) return Unsupported("family blocks: keys cannot be listed without reading values");
    return Iterate(family, prefix, [&](const rocksdb::Iterator& it) { return visit(ToView(it.key())); });
  }

  Status ScanPrefixes(Family family, size_t prefix_bytes,
                      const std::function<Status(std::string_view)>& visit) const override {
    rocksdb::ReadOptions options = Options();
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(reads_->NewIterator(options, Handle(family)));
    for (it->SeekToFirst(); it->Valid();) {
      const std::string prefix(ToView(it->key()).substr(0, prefix_bytes));
      RETURN_IF_ERROR(visit(prefix));
      const std::string next = prefix.size() < prefix_bytes ? prefix + '\0' : PrefixEnd(prefix);
      if (next.empty()) break;
      it->Seek(next);
    }
    return FromRocks(it->status(), InFamily("listing", family));
  }

 protected:
  rocksdb::ReadOptions Options() const {
    rocksdb::ReadOptions options;
    options.snapshot = snapshot_;
    return options;
  }
  rocksdb::ColumnFamilyHandle* Handle(Family family) const { return handles_.at(static_cast<size_t>(family)); }

  static Result<StoredValue> Wrap(Family family, std::string_view key, const rocksdb::Status& s,
                                  std::shared_ptr<rocksdb::PinnableSlice> value) {
    if (s.IsNotFound()) return NotFound(InFamily("reading", family) + ": no key 0x" + ToHex(AsBytes(key)));
    if (!s.ok()) return FromRocks(s, InFamily("reading", family));
    const ByteSpan bytes = ToSpan(*value);
    return StoredValue(bytes, std::move(value));
  }

  template <typename Visit>
  Status Iterate(Family family, std::string_view prefix, const Visit& visit) const {
    const std::string end = PrefixEnd(prefix);
    const rocksdb::Slice upper(end);
    rocksdb::ReadOptions options = Options();
    options.fill_cache = false;
    if (!end.empty()) options.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> it(reads_->NewIterator(options, Handle(family)));
    for (it->Seek(ToSlice(prefix)); it->Valid(); it->Next()) RETURN_IF_ERROR(visit(*it));
    return FromRocks(it->status(), InFamily("listing", family));
  }

  rocksdb::DB* reads_ = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // by Family, then RocksDB's own "default"
  const rocksdb::Snapshot* snapshot_ = nullptr;        // null: the store as it is
};

class RocksSnapshot final : public RocksReads<KvReader> {
 public:
  RocksSnapshot(rocksdb::DB* db, const std::vector<rocksdb::ColumnFamilyHandle*>& handles) {
    reads_ = db;
    handles_ = handles;
    snapshot_ = db->GetSnapshot();
  }
  ~RocksSnapshot() override {
    if (snapshot_ != nullptr) reads_->ReleaseSnapshot(snapshot_);
  }
  RocksSnapshot(const RocksSnapshot&) = delete;
  RocksSnapshot& operator=(const RocksSnapshot&) = delete;

  bool is_valid() const { return snapshot_ != nullptr; }
};

class RocksStore final : public RocksReads<KvStore> {
 public:
  RocksStore(std::unique_ptr<StoreFolder> folder, std::unique_ptr<rocksdb::Env> env, bool read_only)
      : folder_(std::move(folder)), env_(std::move(env)), read_only_(read_only) {}

  ~RocksStore() override {
    if (db_ == nullptr) return;
    for (rocksdb::ColumnFamilyHandle* handle : handles_) (void)db_->DestroyColumnFamilyHandle(handle);
    (void)db_->Close();
  }

  Status OpenDb(const StoreOptions& options);

  Result<std::unique_ptr<const KvReader>> Snapshot() const override {
    auto snapshot = std::make_unique<RocksSnapshot>(db_.get(), handles_);
    if (!snapshot->is_valid()) return ResourceExhausted("store " + folder_->dir() + ": it gives no snapshot");
    return std::unique_ptr<const KvReader>(std::move(snapshot));
  }

  Status Write(const WriteBatch& batch, Durability durability) override;
  Status Flush(std::span<const Family> families) override;

  Result<BlockSizes> CountBlocks() const override {
    BlockSizes sizes;
    RETURN_IF_ERROR(
        FromRocks(SizesByPrefix(*db_, Handle(Family::kBlocks), &sizes), InFamily("examining", Family::kBlocks)));
    return sizes;
  }
  Status CollectGarbage(const std::function<bool()>& cancelled) override;
  Status CollectBlocks(std::string_view begin, std::string_view end, const std::function<bool()>& cancelled) override;
  Result<uint64_t> DiskBytes() const override { return folder_->DiskBytes(); }
  Status VerifyChecksums(const std::function<bool()>& cancelled) override;

 private:
  Status CheckWritable() const;
  Status CheckRoom(const WriteBatch& batch, Durability durability);
  // Maps the status of a write and remembers a failure for CheckWritable.
  Status Noted(const rocksdb::Status& s, std::string_view what);
  // Calls what writes, as Noted. An exception (memory that runs out) leaves RocksDB's queue of writers with an entry
  // that is gone: whoever joined it would wait for ever. So writers enter one by one, and none after an exception.
  Status WriteAlone(const std::function<rocksdb::Status()>& write, std::string_view what);
  // Gives the ballast up when the disk is nearly full.
  void MakeRoom();
  // Deletions that no compaction has seen are carried out, without a value being copied: blob files without a live
  // value go. `range` null: all keys.
  Status DropDeleted(Family family, const KeyRange* range, const std::function<bool()>& cancelled);
  // Copies the live blocks out of blob files that are partly dead. `within`: those that keys of that range refer to.
  Status CopyLiveBlocks(const KeyRange* within, const std::function<bool()>& cancelled);
  // `range` null: all keys.
  Status Compact(Family family, const rocksdb::CompactRangeOptions& options, const KeyRange* range,
                 const std::function<bool()>& cancelled);

  // Destroyed last: the lock.
  const std::unique_ptr<StoreFolder> folder_;
  const std::unique_ptr<rocksdb::Env> env_;  // null: RocksDB's default
  const bool read_only_;
  std::unique_ptr<rocksdb::DB> db_;

  Mutex write_mutex_ MS_ACQUIRED_BEFORE(failure_mutex_);  // guards no data: who holds it writes
  std::atomic<bool> write_failed_{false};
  mutable Mutex failure_mutex_;
  Status first_failure_ MS_GUARDED_BY(failure_mutex_);
};

Status RocksStore::OpenDb(const StoreOptions& options) {
  // RocksDB asserts that it is not.
  if (std::time(nullptr) < 0)
    return IoError("opening store " + folder_->dir() + ": the system's clock is before 1970; set it");
  const MemoryPlan memory = PlanMemory(options.memory_budget_bytes);
  rocksdb::Env* env = env_ ? env_.get() : rocksdb::Env::Default();
  const rocksdb::DBOptions db_options = MakeDbOptions(memory, env);
  const std::string what = "opening store " + folder_->dir();
  if (const Status started = StartBackgroundThreads(env); !started.ok()) return started.WithContext(what);
  if (folder_->has_db()) {
    std::vector<std::string> names;
    RETURN_IF_ERROR(FromRocks(rocksdb::DB::ListColumnFamilies(db_options, folder_->db_dir(), &names), what));
    for (const std::string& name : names) {
      bool known = name == rocksdb::kDefaultColumnFamilyName;
      for (int i = 0; i < kFamilyCount; ++i) known |= name == FamilyName(static_cast<Family>(i));
      if (!known)
        return Unsupported(what + ": it has the family \"" + name +
                           "\", which this build does not know; use a newer modelstore");
    }
    // Opening it to write makes those that are missing.
    if (read_only_ && names.size() <= kFamilyCount)
      return NotFound("no store at " + folder_->dir() + " (its creation was cut short); run push to create one");
  }
  rocksdb::LRUCacheOptions cache_options;
  cache_options.capacity = memory.block_cache;
  const std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(cache_options);
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (int i = 0; i < kFamilyCount; ++i) {
    const auto family = static_cast<Family>(i);
    families.emplace_back(std::string(FamilyName(family)), MakeFamilyOptions(family, memory, cache));
  }
  families.emplace_back(rocksdb::kDefaultColumnFamilyName, MakeFamilyOptions(Family::kMeta, memory, cache));
  rocksdb::DB* db = nullptr;
  rocksdb::Status s;
  const auto open = [&] {
    const Status opened = Guarded([&] {
      s = read_only_ ? rocksdb::DB::OpenForReadOnly(db_options, folder_->db_dir(), families, &handles_, &db)
                     : rocksdb::DB::Open(db_options, folder_->db_dir(), families, &handles_, &db);
      return OkStatus();
    });
    return opened.WithContext(what);
  };
  RETURN_IF_ERROR(open());
  bool used_ballast = false;
  if (OutOfSpace(s) && !read_only_ && folder_->ReleaseBallast()) {
    used_ballast = true;
    RETURN_IF_ERROR(open());
  }
  db_.reset(db);
  reads_ = db;
  // Given up to make room for the next writes too; CollectGarbage takes it back.
  if (s.ok() && !read_only_ && !used_ballast) folder_->RefillBallast();
  return FromRocks(s, what);
}

// RocksDB would have to be resumed after a failed write. In 7.8.3 that can wait for ever (a flush that was scheduled
// but had not begun when another job failed is never scheduled again) or abort the process (the log is not renewed when
// there is nothing to flush, and its writer asserts that it has seen no error). So writes stay refused until the store
// is opened again, which loses only what no Flush has confirmed; CheckRoom keeps a full disk from getting that far.
Status RocksStore::CheckWritable() const {
  if (read_only_) return PermissionDenied("store " + folder_->dir() + " was opened read-only");
  if (!write_failed_.load(std::memory_order_acquire)) return OkStatus();
  const MutexLock lock(failure_mutex_);
  return first_failure_.WithContext("store " + folder_->dir() +
                                    " takes no more writes until it is opened again (systemctl restart modelstored), "
                                    "because one failed");
}

Status RocksStore::Noted(const rocksdb::Status& s, std::string_view what) {
  const Status status = FromRocks(s, what);
  // Busy and cancelled are answers, not failures.
  if (!status.ok() && (s.IsIOError() || s.IsCorruption())) {
    const MutexLock lock(failure_mutex_);
    if (first_failure_.ok()) first_failure_ = status;
    write_failed_.store(true, std::memory_order_release);
  }
  return status;
}

Status RocksStore::WriteAlone(const std::function<rocksdb::Status()>& write, std::string_view what) {
  const MutexLock alone(write_mutex_);
  RETURN_IF_ERROR(CheckWritable());
  bool has_ended = false;
  const Status status = Guarded([&] {
    const rocksdb::Status s = write();
    has_ended = true;
    return Noted(s, what);
  });
  if (has_ended) return status;
  const MutexLock lock(failure_mutex_);
  if (first_failure_.ok()) first_failure_ = status;
  write_failed_.store(true, std::memory_order_release);
  return status;
}

Status RocksStore::Write(const WriteBatch& batch, Durability durability) {
  RETURN_IF_ERROR(CheckWritable());
  if (batch.empty()) return OkStatus();
  RETURN_IF_ERROR(CheckRoom(batch, durability));
  rocksdb::WriteBatch changes(batch.put_bytes() + batch.ops().size() * 16);
  rocksdb::Status s;
  for (const WriteBatch::Op& op : batch.ops()) {
    rocksdb::ColumnFamilyHandle* handle = Handle(op.family);
    switch (op.kind) {
      case WriteBatch::Op::Kind::kPut:
        s = changes.Put(handle, op.key, op.value);
        break;
      case WriteBatch::Op::Kind::kDelete:
        s = changes.Delete(handle, op.key);
        break;
      case WriteBatch::Op::Kind::kDeleteRange:
        if (op.key < op.value) s = changes.DeleteRange(handle, op.key, op.value);
        break;
    }
    if (!s.ok()) return FromRocks(s, InFamily("writing", op.family));
  }
  rocksdb::WriteOptions options;
  options.sync = durability == Durability::kSync;
  options.disableWAL = durability == Durability::kNone;
  return WriteAlone([&] { return db_->Write(options, &changes); }, InFamily("writing", batch.ops().front().family));
}

// What goes into memory must fit on the disk later, and what makes room must not be kept from it.
Status RocksStore::CheckRoom(const WriteBatch& batch, Durability durability) {
  constexpr uint64_t kMargin = 4 * kMiB;  // indexes, the log, the MANIFEST
  ASSIGN_OR_RETURN(const uint64_t available, folder_->FreeBytes());
  uint64_t needed = batch.put_bytes() + kMargin;
  if (durability == Durability::kNone) {
    uint64_t unflushed = 0;
    (void)db_->GetIntProperty(Handle(Family::kBlocks), rocksdb::DB::Properties::kCurSizeAllMemTables, &unflushed);
    needed += unflushed;
  }
  if (available >= needed) return OkStatus();
  // A batch that deletes and adds next to nothing is on its way to making room: that is what the ballast is for.
  constexpr uint64_t kNextToNothing = 64 << 10;
  if (batch.put_bytes() < kNextToNothing && std::ranges::any_of(batch.ops(), [](const WriteBatch::Op& op) {
        return op.kind != WriteBatch::Op::Kind::kPut;
      })) {
    folder_->ReleaseBallast();
    return OkStatus();
  }
  return NoSpace("store " + folder_->dir() + ": " + std::to_string(needed - available) + " bytes short of the " +
                 std::to_string(needed) + " needed for what is being written; make room, or remove models and prune");
}

Status RocksStore::Flush(std::span<const Family> families) {
  RETURN_IF_ERROR(CheckWritable());
  // One by one: flushing several at once is only defined with atomic flushes, which would flush every family.
  for (const Family family : families)
    RETURN_IF_ERROR(
        WriteAlone([&] { return db_->Flush(rocksdb::FlushOptions(), Handle(family)); }, InFamily("flushing", family)));
  return OkStatus();
}

// CompactRange blocks, so that it runs beside this thread, which polls.
Status RocksStore::Compact(Family family, const rocksdb::CompactRangeOptions& options, const KeyRange* range,
                           const std::function<bool()>& cancelled) {
  const auto stopped = [] { return Cancelled("collecting garbage was cancelled; what was freed stays freed"); };
  if (cancelled && cancelled()) return stopped();
  std::atomic<bool> stop{false};
  rocksdb::CompactRangeOptions compact = options;
  compact.canceled = &stop;
  rocksdb::Slice first, last;
  if (range != nullptr) {
    first = range->first;
    last = range->last;
  }
  std::packaged_task<rocksdb::Status()> task(
      [&] { return db_->CompactRange(compact, Handle(family), range ? &first : nullptr, range ? &last : nullptr); });
  std::future<rocksdb::Status> done = task.get_future();
  ASSIGN_OR_RETURN(const Thread compacting, Thread::Start([&] { task(); }));
  while (done.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready)
    if (cancelled && cancelled()) stop = true;
  const rocksdb::Status s = done.get();
  if (stop && !s.ok()) return stopped();
  return Noted(s, InFamily("compacting", family));
}

void RocksStore::MakeRoom() {
  constexpr uint64_t kLittleSpace = 16 * kMiB;
  if (const auto available = folder_->FreeBytes(); available.ok() && *available < kLittleSpace)
    folder_->ReleaseBallast();
}

Status RocksStore::DropDeleted(Family family, const KeyRange* range, const std::function<bool()>& cancelled) {
  rocksdb::CompactRangeOptions drop;
  drop.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  drop.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  return Compact(family, drop, range, cancelled);
}

// A range at a time, so that little space is needed before some is freed.
Status RocksStore::CopyLiveBlocks(const KeyRange* within, const std::function<bool()>& cancelled) {
  // A file with less garbage than this part is left alone.
  constexpr uint64_t kMinGarbageShare = 64;
  std::vector<KeyRange> ranges;
  RETURN_IF_ERROR(FromRocks(RangesWithGarbage(*db_, Handle(Family::kBlocks), kMinGarbageShare, &ranges),
                            InFamily("examining", Family::kBlocks)));
  rocksdb::CompactRangeOptions copy;
  copy.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  copy.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  copy.blob_garbage_collection_age_cutoff = 1.0;
  for (const KeyRange& range : ranges) {
    if (within != nullptr && (range.last < within->first || range.first > within->last)) continue;
    RETURN_IF_ERROR(Compact(Family::kBlocks, copy, &range, cancelled));
  }
  return OkStatus();
}

Status RocksStore::VerifyChecksums(const std::function<bool()>& cancelled) {
  std::vector<ChecksummedFile> gone;
  for (const ChecksummedFile& file : ListChecksummedFiles(*db_, handles_)) {
    const Status status = VerifyFileChecksum(file, cancelled);
    if (status.code() == StatusCode::kNotFound) {
      gone.push_back(file);
    } else if (!status.ok()) {
      return status.WithContext("verifying the store's files");
    }
  }
  // Compactions delete files meanwhile.
  if (gone.empty()) return OkStatus();
  const std::vector<ChecksummedFile> now = ListChecksummedFiles(*db_, handles_);
  for (const ChecksummedFile& file : gone) {
    if (std::find(now.begin(), now.end(), file) != now.end())
      return Corruption("verifying the store's files: " + file.path + " is missing");
  }
  return OkStatus();
}

Status RocksStore::CollectBlocks(std::string_view begin, std::string_view end, const std::function<bool()>& cancelled) {
  RETURN_IF_ERROR(CheckWritable());
  MakeRoom();
  constexpr Family kBlockFamily[] = {Family::kBlocks};
  RETURN_IF_ERROR(Flush(kBlockFamily));
  const KeyRange range{std::string(begin), std::string(end)};
  RETURN_IF_ERROR(DropDeleted(Family::kBlocks, &range, cancelled));
  RETURN_IF_ERROR(CopyLiveBlocks(&range, cancelled));
  folder_->RefillBallast();
  return OkStatus();
}

Status RocksStore::CollectGarbage(const std::function<bool()>& cancelled) {
  RETURN_IF_ERROR(CheckWritable());
  std::array<Family, kFamilyCount> families;
  for (int i = 0; i < kFamilyCount; ++i) families[i] = static_cast<Family>(i);
  MakeRoom();
  RETURN_IF_ERROR(Flush(families));

  for (const Family family : families) RETURN_IF_ERROR(DropDeleted(family, nullptr, cancelled));
  RETURN_IF_ERROR(CopyLiveBlocks(nullptr, cancelled));
  folder_->RefillBallast();
  return OkStatus();
}

}  // namespace

size_t StoreDescriptors() {
  constexpr size_t kMost = 512, kLeast = 20;  // below that RocksDB takes 20
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kLeast;
  return std::clamp(static_cast<size_t>(limit.rlim_cur / 4), kLeast, kMost);
}

Result<std::unique_ptr<KvStore>> OpenRocksStore(const std::string& dir, const StoreOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<StoreFolder> folder, StoreFolder::Open(dir, options));
  std::unique_ptr<rocksdb::Env> env;
  if (options.before_write) env = NewHookedEnv(options.before_write);
  auto store = std::make_unique<RocksStore>(std::move(folder), std::move(env), options.read_only);
  RETURN_IF_ERROR(store->OpenDb(options));
  return std::unique_ptr<KvStore>(std::move(store));
}

}  // namespace modelstore

// The dynamic linker finds this definition before the one in librocksdb, for that library's calls too (crc32c.h says
// why). Where it cannot, the library's own is used; the values are the same.
namespace rocksdb::crc32c {

uint32_t Extend(uint32_t crc, const char* data, size_t size);  // as in RocksDB's util/crc32c.h, which is not installed
uint32_t Extend(uint32_t crc, const char* data, size_t size) { return modelstore::ExtendCrc32c(crc, data, size); }

}  // namespace rocksdb::crc32c
