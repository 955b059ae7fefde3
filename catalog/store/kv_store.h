// KvStore: the ordered key-value store under the catalog (layer: catalog/store; the RocksDB implementation is the only
// user of RocksDB), and KvReader, what may be asked of it.
//
// Thread-safe. A key is unique within its family; families are ordered by bytes. Values of kBlocks are large and live
// outside the LSM tree (BlobDB). Every Status names the family and the reason.
//
// Who draws conclusions from more than one read takes a snapshot: two scans of the store itself may see the state
// before and after a batch that somebody else wrote between them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

enum class Family : uint8_t { kMeta = 0, kModels, kFiles, kTensors, kBlocks, kEdges, kSketches };
inline constexpr int kFamilyCount = 7;
std::string_view FamilyName(Family family);

// A value read from the store; the bytes live as long as this object (no copy is made of large values).
class StoredValue {
 public:
  StoredValue() = default;
  StoredValue(ByteSpan bytes, std::shared_ptr<const void> owner) : bytes_(bytes), owner_(std::move(owner)) {}
  ByteSpan bytes() const { return bytes_; }

 private:
  ByteSpan bytes_;
  std::shared_ptr<const void> owner_;
};

// Changes that become visible together or not at all.
class WriteBatch {
 public:
  void Put(Family family, std::string_view key, ByteSpan value);
  void Delete(Family family, std::string_view key);
  // Deletes every key in [begin, end).
  void DeleteRange(Family family, std::string_view begin, std::string_view end);

  struct Op {
    enum class Kind : uint8_t { kPut, kDelete, kDeleteRange } kind;
    Family family;
    std::string key;
    std::string value;  // for kDeleteRange: the end key
  };
  const std::vector<Op>& ops() const { return ops_; }
  bool empty() const { return ops_.empty(); }
  // Keys and values, as `stored_bytes` counts them (Put only).
  uint64_t put_bytes() const { return put_bytes_; }

 private:
  std::vector<Op> ops_;
  uint64_t put_bytes_ = 0;
};

// How many values family kBlocks has under keys of one prefix, and what keys and values take.
struct BlockSize {
  uint64_t values = 0, bytes = 0;
};
inline constexpr size_t kBlockPrefixBytes = 8;  // the push that wrote them
using BlockSizes = std::map<std::string, BlockSize, std::less<>>;

enum class Durability : uint8_t {
  kNone,  // not in the write-ahead log: durable only after Flush() of the family
  kSync,  // in the log, and the log synced, before Write returns
};

class KvReader {
 public:
  virtual ~KvReader() = default;

  // Errors: NotFound when the key is absent; Corruption, Io.
  virtual Result<StoredValue> Get(Family family, std::string_view key) const = 0;
  // One result a key, in order (one round trip for many keys).
  virtual std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const = 0;
  // Calls `visit` with each key that starts with `prefix`, in order, until it returns an error, which is returned
  // (return Cancelled to stop early). Views passed to `visit` die with the call. Sees one snapshot.
  virtual Status Scan(Family family, std::string_view prefix,
                      const std::function<Status(std::string_view key, ByteSpan value)>& visit) const = 0;
  // Like Scan, but hands out keys only. Errors also: Unsupported for kBlocks, because RocksDB's iterators read every
  // large value they pass; use ScanPrefixes, or what the records say.
  virtual Status ScanKeys(Family family, std::string_view prefix,
                          const std::function<Status(std::string_view key)>& visit) const = 0;
  // Calls `visit` with each distinct prefix of `prefix_bytes` bytes that occurs, in order (kBlocks and 8: the pushes
  // that have blocks). Shorter keys are passed whole. Costs one seek and one value a prefix.
  virtual Status ScanPrefixes(Family family, size_t prefix_bytes,
                              const std::function<Status(std::string_view prefix)>& visit) const = 0;
};

class KvStore : public KvReader {
 public:
  // The store as it is now, for any number of reads, whatever is written meanwhile. The store outlives it. Space of
  // what is deleted while it lives is not given back before it ends: keep it for as long as its reads take.
  // Errors: ResourceExhausted.
  virtual Result<std::unique_ptr<const KvReader>> Snapshot() const = 0;
  // Errors: NoSpace (checked before writing: nothing happened, later writes work), Io, PermissionDenied (opened
  // read-only). After a write that the system failed, every later one is refused with the same code until the store is
  // opened again; reads go on.
  virtual Status Write(const WriteBatch& batch, Durability durability) = 0;
  // Makes everything written to these families durable.
  virtual Status Flush(std::span<const Family> families) = 0;
  // What is in family kBlocks, by the first kBlockPrefixBytes bytes of the keys, without reading it. An account of what
  // was flushed: deleted values are in it until they are collected, and what a build wrote that kept no account is
  // not.
  virtual Result<BlockSizes> CountBlocks() const = 0;
  // Gives the space of deleted keys back to the file system (compaction with blob garbage collection forced).
  // `cancelled` is polled; on cancellation what is done stays done.
  virtual Status CollectGarbage(const std::function<bool()>& cancelled) = 0;
  // The same for what was deleted of family kBlocks in [begin, end) alone: it costs what was written there, not what
  // else the store holds.
  virtual Status CollectBlocks(std::string_view begin, std::string_view end,
                               const std::function<bool()>& cancelled) = 0;
  // Bytes that the store's folder takes on disk (st_blocks), everything counted.
  virtual Result<uint64_t> DiskBytes() const = 0;
  // Reads the store's own files and checks their checksums. `cancelled` is polled. Errors: Corruption naming the file,
  // Cancelled.
  virtual Status VerifyChecksums(const std::function<bool()>& cancelled = nullptr) = 0;
};

// How many files a store of RocksDB's keeps open at most: a quarter of the limit of descriptors, up to 512.
size_t StoreDescriptors();

struct StoreOptions {
  bool create_if_missing = false;
  bool read_only = false;
  uint64_t memory_budget_bytes = 256ull << 20;  // write buffers and RocksDB's block cache together
  // Tests: called before each append or sync of a store file with the bytes about to be written; a failure is
  // returned to RocksDB in its place (the failing-write layer).
  std::function<Status(uint64_t bytes)> before_write;
};

// Opens the store in folder `dir` (created, mode 0700, when create_if_missing; a folder that is not empty and not a
// store is refused) and takes its lock for the life of the object.
// Errors: NotFound (no store there: "… run push to create one"), Locked (another process holds it, with its pid and
// command when known), Unsupported (newer format or unknown feature: says which), Corruption (a published model is
// missing from the log: the digest in meta disagrees), PermissionDenied, NoSpace, Io.
Result<std::unique_ptr<KvStore>> OpenRocksStore(const std::string& dir, const StoreOptions& options);

// The same interface in memory, for unit tests above this layer. `before_write` as in StoreOptions.
std::unique_ptr<KvStore> NewMemoryStore(std::function<Status(uint64_t bytes)> before_write = nullptr);

}  // namespace modelstore
