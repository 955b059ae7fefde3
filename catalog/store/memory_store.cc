// KvStore in memory, for unit tests above this layer.
#include <array>
#include <map>

#include "catalog/store/kv_store.h"
#include "codec/support/hash.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

class MemoryStore final : public KvStore {
 public:
  using Value = std::shared_ptr<const std::string>;
  using Map = std::map<std::string, Value, std::less<>>;
  using Maps = std::array<Map, kFamilyCount>;

  explicit MemoryStore(std::function<Status(uint64_t)> before_write, Maps maps = {})
      : before_write_(std::move(before_write)), maps_(std::move(maps)) {}

  Result<StoredValue> Get(Family family, std::string_view key) const override {
    const ReaderLock lock(mutex_);
    const Map& map = MapOf(family);
    const auto it = map.find(key);
    if (it == map.end())
      return NotFound("family " + std::string(FamilyName(family)) + ": no key 0x" + ToHex(AsBytes(key)));
    return StoredValue(AsBytes(*it->second), it->second);
  }

  std::vector<Result<StoredValue>> MultiGet(Family family, std::span<const std::string> keys) const override {
    std::vector<Result<StoredValue>> out;
    out.reserve(keys.size());
    for (const std::string& key : keys) out.push_back(Get(family, key));
    return out;
  }

  // A copy of the maps; the values are shared.
  Result<std::unique_ptr<const KvReader>> Snapshot() const override {
    const ReaderLock lock(mutex_);
    return std::unique_ptr<const KvReader>(std::make_unique<MemoryStore>(nullptr, maps_));
  }

  Status Write(const WriteBatch& batch, Durability) override {
    if (before_write_) RETURN_IF_ERROR(before_write_(batch.put_bytes()));
    const WriterLock lock(mutex_);
    for (const WriteBatch::Op& op : batch.ops()) {
      Map& map = MapOf(op.family);
      switch (op.kind) {
        case WriteBatch::Op::Kind::kPut:
          map.insert_or_assign(op.key, std::make_shared<const std::string>(op.value));
          break;
        case WriteBatch::Op::Kind::kDelete:
          map.erase(op.key);
          break;
        case WriteBatch::Op::Kind::kDeleteRange:
          if (op.key < op.value) map.erase(map.lower_bound(op.key), map.lower_bound(op.value));
          break;
      }
    }
    return OkStatus();
  }

  Status Flush(std::span<const Family>) override { return before_write_ ? before_write_(0) : OkStatus(); }

  Status Scan(Family family, std::string_view prefix,
              const std::function<Status(std::string_view, ByteSpan)>& visit) const override {
    for (const auto& [key, value] : Matching(family, prefix)) RETURN_IF_ERROR(visit(key, AsBytes(*value)));
    return OkStatus();
  }

  Status ScanKeys(Family family, std::string_view prefix,
                  const std::function<Status(std::string_view)>& visit) const override {
    if (family == Family::kBlocks) return Unsupported("family blocks: keys cannot be listed without reading values");
    for (const auto& [key, value] : Matching(family, prefix)) RETURN_IF_ERROR(visit(key));
    return OkStatus();
  }

  Status ScanPrefixes(Family family, size_t prefix_bytes,
                      const std::function<Status(std::string_view)>& visit) const override {
    std::string last;
    bool any = false;
    for (const auto& [key, value] : Matching(family, "")) {
      const std::string_view prefix = std::string_view(key).substr(0, prefix_bytes);
      if (any && prefix == last) continue;
      any = true;
      last = prefix;
      RETURN_IF_ERROR(visit(last));
    }
    return OkStatus();
  }

  Result<BlockSizes> CountBlocks() const override {
    BlockSizes sizes;
    for (const auto& [key, value] : Matching(Family::kBlocks, "")) {
      BlockSize& size = sizes[key.substr(0, kBlockPrefixBytes)];
      size.values += 1;
      size.bytes += key.size() + value->size();
    }
    return sizes;
  }

  Status CollectGarbage(const std::function<bool()>& cancelled) override {
    return cancelled && cancelled() ? Cancelled("collecting garbage was cancelled") : OkStatus();
  }

  Status CollectBlocks(std::string_view, std::string_view, const std::function<bool()>& cancelled) override {
    return CollectGarbage(cancelled);
  }

  Result<uint64_t> DiskBytes() const override {
    const ReaderLock lock(mutex_);
    uint64_t bytes = 0;
    for (const Map& map : maps_)
      for (const auto& [key, value] : map) bytes += key.size() + value->size();
    return bytes;
  }

  Status VerifyChecksums(const std::function<bool()>&) override { return OkStatus(); }

 private:
  Map& MapOf(Family family) MS_REQUIRES(mutex_) { return maps_.at(static_cast<size_t>(family)); }
  const Map& MapOf(Family family) const MS_REQUIRES_SHARED(mutex_) { return maps_.at(static_cast<size_t>(family)); }

  std::vector<std::pair<std::string, Value>> Matching(Family family, std::string_view prefix) const {
    const ReaderLock lock(mutex_);
    const Map& map = MapOf(family);
    std::vector<std::pair<std::string, Value>> out;
    for (auto it = map.lower_bound(prefix); it != map.end() && it->first.starts_with(prefix); ++it)
      out.emplace_back(*it);
    return out;
  }

  const std::function<Status(uint64_t)> before_write_;
  mutable SharedMutex mutex_;
  Maps maps_ MS_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<KvStore> NewMemoryStore(std::function<Status(uint64_t bytes)> before_write) {
  return std::make_unique<MemoryStore>(std::move(before_write));
}

}  // namespace modelstore
