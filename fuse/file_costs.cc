#include "fuse/file_costs.h"

#include <algorithm>
#include <string>
#include <vector>

namespace modelstore {

Result<uint64_t> FileCosts::StoredBytes(const Sha256Digest& sha256) {
  uint64_t forgotten = 0;
  {
    const MutexLock lock(mutex_);
    if (const auto it = known_.find(sha256); it != known_.end()) return it->second;
    forgotten = forgotten_;
  }
  ASSIGN_OR_RETURN(const uint64_t bytes, Compute(sha256));
  const MutexLock lock(mutex_);
  // What was worked out from records of before is not kept.
  if (forgotten == forgotten_) known_.emplace(sha256, bytes);
  return bytes;
}

void FileCosts::Forget(const Sha256Digest& sha256) {
  const MutexLock lock(mutex_);
  known_.erase(sha256);
  ++forgotten_;
}

template <typename Used, typename VisitFn>
Status FileCosts::ForRecords(const std::map<TensorId, Used>& tensors, const VisitFn& visit) const {
  std::vector<std::string> keys;
  for (const auto& [id, used] : tensors) keys.push_back(TensorKey(id));
  const std::vector<Result<StoredValue>> records = store_.MultiGet(Family::kTensors, keys);
  auto next = tensors.begin();
  for (size_t i = 0; i < records.size(); ++i, ++next) {
    if (!records[i].ok()) return records[i].status().WithContext("tensor " + ToHex(AsBytes(keys[i])));
    const ByteSpan value = records[i].value().bytes();
    ASSIGN_OR_RETURN(const TensorRecord tensor, ParseTensorRecord(value));
    visit(next->first, next->second, tensor, value.size());
  }
  return OkStatus();
}

Result<uint64_t> FileCosts::Compute(const Sha256Digest& sha256) const {
  ASSIGN_OR_RETURN(const StoredValue value, store_.Get(Family::kFiles, FileKey(sha256)));
  ASSIGN_OR_RETURN(const FileRecord file, ParseFileRecord(value.bytes()));

  uint64_t total = 0;
  std::map<TensorId, uint64_t> used_bytes;
  for (const Extent& extent : file.extents) {
    if (extent.kind == Extent::Kind::kLiteral) {
      total += extent.literal.size();
    } else {
      used_bytes[extent.tensor] += extent.bytes;
    }
  }
  std::map<TensorId, double> part_shares;
  RETURN_IF_ERROR(ForRecords(used_bytes, [&](const TensorId&, uint64_t used, const TensorRecord& tensor, size_t bytes) {
    const double share = used >= tensor.bytes ? 1 : static_cast<double>(used) / static_cast<double>(tensor.bytes);
    total += static_cast<uint64_t>(share * static_cast<double>(tensor.is_computed() ? bytes : tensor.coded_bytes));
    const auto add = [&](const TensorId& part) { part_shares[part] = std::max(part_shares[part], share); };
    for (const TensorInput& input : tensor.inputs)
      if (IsOwnInput(input.role)) ForEachSeen(input.view, add);
  }));
  RETURN_IF_ERROR(ForRecords(part_shares, [&](const TensorId& id, double share, const TensorRecord& part, size_t) {
    if (!used_bytes.contains(id)) total += static_cast<uint64_t>(share * static_cast<double>(part.coded_bytes));
  }));
  return total;
}

}  // namespace modelstore
