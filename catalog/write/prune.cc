#include <algorithm>
#include <map>
#include <numeric>
#include <optional>

#include "catalog/write/maintain.h"
#include "catalog/write/store_usage.h"
#include "catalog/write/store_walk.h"
#include "codec/support/guarded.h"

namespace modelstore {
namespace {

constexpr size_t kOpsPerBatch = 4096;

PushId PushOf(std::string_view prefix) {
  PushId push = 0;
  for (const char c : prefix) push = push << 8 | static_cast<unsigned char>(c);
  return push;
}

// Deletes in bounded, synced batches, in the order asked for: killed between two of them, the store is as good as
// before.
class Sweeper {
 public:
  // `totals`: the store's usage totals, which every batch keeps right; none: they are wrong and go.
  Sweeper(KvStore& store, const std::optional<UsageTotals>& totals, bool dry_run, JobControl& job)
      : store_(store), totals_(totals), dry_run_(dry_run), job_(job) {}

  WriteBatch& batch() { return batch_; }
  // What this batch deletes of tensors and files.
  void Free(uint64_t cost_bytes) {
    if (totals_) totals_->cost_bytes -= cost_bytes;
  }
  // Ends a group of deletions that must happen together.
  Status EndGroup() { return batch_.ops().size() < kOpsPerBatch ? OkStatus() : Commit(); }
  Status Commit() {
    RETURN_IF_ERROR(job_.Check());
    if (!dry_run_ && !batch_.empty()) {
      if (totals_) {
        batch_.Put(Family::kMeta, kUsageTotalsKey, Serialize(*totals_));
      } else {
        batch_.Delete(Family::kMeta, kUsageTotalsKey);
      }
      RETURN_IF_ERROR(store_.Write(batch_, Durability::kSync));
    }
    batch_ = {};
    return OkStatus();
  }

 private:
  KvStore& store_;
  std::optional<UsageTotals> totals_;
  const bool dry_run_;
  JobControl& job_;
  WriteBatch batch_;
};

Status SweepFiles(const StoreWalk& walk, const StoreWalk::Reachable& live, Sweeper& sweeper, PruneReport* report) {
  for (size_t i = 0; i < walk.files().size(); ++i) {
    if (live.files[i]) continue;
    sweeper.batch().Delete(Family::kFiles, FileKey(walk.files()[i].sha256));
    sweeper.batch().Delete(Family::kMeta, UsageKey(walk.files()[i].sha256));
    sweeper.Free(walk.files()[i].cost);
    report->files += 1;
    report->freed_bytes += walk.files()[i].cost;
    RETURN_IF_ERROR(sweeper.EndGroup());
  }
  return sweeper.Commit();
}

// A tensor's record goes together with its blocks, so that neither is ever there without the other; and before its
// bases, whose depth is smaller: a push takes any record it finds for a tensor that it can decode.
Status SweepTensors(const StoreWalk& walk, const StoreWalk::Reachable& live, Sweeper& sweeper, PruneReport* report) {
  std::vector<uint32_t> order(walk.tensors().size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return walk.tensors()[a].depth > walk.tensors()[b].depth; });
  for (const uint32_t i : order) {
    if (live.tensors[i]) continue;
    const StoreWalk::Tensor& tensor = walk.tensors()[i];
    const std::string key = TensorKey(tensor.id);
    sweeper.batch().Delete(Family::kTensors, key);
    sweeper.Free(tensor.cost);
    if (tensor.has_sketch) sweeper.batch().Delete(Family::kSketches, key);
    for (const uint32_t base : tensor.bases) {
      // Those that are nobody's base have no edges.
      if (base != StoreWalk::kMissing && FactsOf(tensor.encoding).may_be_base)
        sweeper.batch().Delete(Family::kEdges, EdgeKey(walk.tensors()[base].id, tensor.id));
    }
    if (tensor.block_count > 0) {
      const uint64_t end = uint64_t{tensor.first_block} + tensor.block_count;
      sweeper.batch().DeleteRange(
          Family::kBlocks, BlockKey(tensor.push, tensor.first_block),
          end > UINT32_MAX ? BlockKeyPrefix(tensor.push + 1) : BlockKey(tensor.push, static_cast<uint32_t>(end)));
    }
    report->tensors += 1;
    report->blocks += tensor.block_count;
    report->freed_bytes += tensor.cost;
    RETURN_IF_ERROR(sweeper.EndGroup());
  }
  return sweeper.Commit();
}

// Blocks of pushes that no tensor names: of killed or failed ones, which never published.
Status SweepUnpublished(KvStore& store, const StoreWalk& walk, JobControl& job, Sweeper& sweeper, PruneReport* report) {
  std::map<PushId, bool> published;
  for (const StoreWalk::Tensor& tensor : walk.tensors()) published[tensor.push] = true;
  std::vector<PushId> unpublished;
  RETURN_IF_ERROR(store.ScanPrefixes(Family::kBlocks, kBlockPrefixBytes, [&](std::string_view prefix) -> Status {
    if (job.cancelled()) return job.Check();
    if (!published.contains(PushOf(prefix))) unpublished.push_back(PushOf(prefix));
    return OkStatus();
  }));
  if (unpublished.empty()) return OkStatus();
  // What they hold is known without reading it.
  constexpr Family kBlockFamily[] = {Family::kBlocks};
  RETURN_IF_ERROR(store.Flush(kBlockFamily));
  ASSIGN_OR_RETURN(const BlockSizes sizes, store.CountBlocks());
  for (const PushId push : unpublished) {
    if (const auto size = sizes.find(BlockKeyPrefix(push)); size != sizes.end()) {
      report->blocks += size->second.values;
      report->freed_bytes += size->second.bytes;
    }
    sweeper.batch().DeleteRange(Family::kBlocks, BlockKeyPrefix(push), BlockKeyPrefix(push + 1));
    RETURN_IF_ERROR(sweeper.EndGroup());
  }
  return sweeper.Commit();
}

// The store as it is, all of it of one moment: models may be renamed meanwhile, nothing else changes. The snapshot ends
// here, so that what is removed can be given back. `totals`: none when usage records or totals are not right.
Result<StoreWalk> LoadForPrune(const KvStore& store, JobControl& job, std::optional<UsageTotals>* totals) {
  ASSIGN_OR_RETURN(const auto snapshot, store.Snapshot());
  ASSIGN_OR_RETURN(StoreWalk walk, StoreWalk::Load(*snapshot, &job));
  ASSIGN_OR_RETURN(const WriteBatch usage_repairs, UsageRepairs(*snapshot, walk));
  if (usage_repairs.empty()) {
    ASSIGN_OR_RETURN(const StoredValue stored, snapshot->Get(Family::kMeta, kUsageTotalsKey));
    ASSIGN_OR_RETURN(*totals, ParseUsageTotals(stored.bytes()));
  }
  return walk;
}

}  // namespace

Result<PruneReport> Prune(Catalog& catalog, bool dry_run, JobControl& job) {
  ASSIGN_OR_RETURN(const CollectGate::Hold alone, catalog.collect_gate().EnterAlone(job));
  KvStore& store = catalog.store();
  PruneReport report;
  ASSIGN_OR_RETURN(report.disk_bytes_before, store.DiskBytes());
  report.disk_bytes_after = report.disk_bytes_before;
  std::optional<UsageTotals> totals;
  ASSIGN_OR_RETURN(const StoreWalk walk, LoadForPrune(store, job, &totals));
  job.Begin("removing", 0);
  Sweeper sweeper(store, totals, dry_run, job);
  const Status swept = Guarded([&]() -> Status {
    StoreWalk::Reachable live;
    {
      // No file that is about to go may be opened between the look at what is open and its record's end.
      const WriterLock opens(catalog.reader().opens_mutex());
      live = walk.Mark(StoreWalk::kMissing, catalog.reader().PinnedTensors());
      RETURN_IF_ERROR(SweepFiles(walk, live, sweeper, &report));
    }
    RETURN_IF_ERROR(SweepTensors(walk, live, sweeper, &report));
    return SweepUnpublished(store, walk, job, sweeper, &report);
  });
  // Also when it stopped half-way: a later push of the same content makes other records under the same tensor ids.
  if (!dry_run) catalog.reader().DropCaches();
  RETURN_IF_ERROR(swept);
  if (dry_run) return report;

  job.Begin("giving space back", 0);
  RETURN_IF_ERROR(store.CollectGarbage([&] { return job.cancelled(); }));
  RETURN_IF_ERROR(job.Check());
  // What an older build did not write, or left behind; last, when there is room.
  if (!totals) RETURN_IF_ERROR(RepairUsage(store));
  ASSIGN_OR_RETURN(report.disk_bytes_after, store.DiskBytes());
  return report;
}

}  // namespace modelstore
