#include "fuse/file_costs.h"

#include <string>
#include <unordered_map>
#include <vector>

#include "catalog/schema/records.h"

namespace modelstore {

Result<uint64_t> FileCosts::StoredBytes(const Sha256Digest& sha256) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = known_.find(sha256); it != known_.end()) return it->second;
  }
  ASSIGN_OR_RETURN(const uint64_t bytes, Compute(sha256));
  const std::lock_guard lock(mutex_);
  known_.emplace(sha256, bytes);
  return bytes;
}

Result<uint64_t> FileCosts::Compute(const Sha256Digest& sha256) const {
  ASSIGN_OR_RETURN(const StoredValue value, store_.Get(Family::kFiles, FileKey(sha256)));
  ASSIGN_OR_RETURN(const FileRecord file, ParseFileRecord(value.bytes()));

  uint64_t total = 0;
  std::vector<std::string> keys;
  std::vector<uint64_t> used_bytes;  // of the tensor with the same index in `keys`
  std::unordered_map<std::string, size_t> index;
  for (const Extent& extent : file.extents) {
    if (extent.kind == Extent::Kind::kLiteral) {
      total += extent.literal.size();
      continue;
    }
    const std::string key = TensorKey(extent.tensor);
    const auto [it, added] = index.try_emplace(key, keys.size());
    if (added) {
      keys.push_back(key);
      used_bytes.push_back(0);
    }
    used_bytes[it->second] += extent.bytes;
  }

  const std::vector<Result<StoredValue>> records = store_.MultiGet(Family::kTensors, keys);
  for (size_t i = 0; i < records.size(); ++i) {
    if (!records[i].ok()) return records[i].status().WithContext("tensor " + ToHex(AsBytes(keys[i])));
    ASSIGN_OR_RETURN(const TensorRecord tensor, ParseTensorRecord(records[i].value().bytes()));
    if (used_bytes[i] >= tensor.bytes) {
      total += tensor.coded_bytes;
    } else {
      const double share = static_cast<double>(used_bytes[i]) / static_cast<double>(tensor.bytes);
      total += static_cast<uint64_t>(share * static_cast<double>(tensor.coded_bytes));
    }
  }
  return total;
}

}  // namespace modelstore
