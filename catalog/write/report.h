// What is stored and what it costs (layer: catalog/write; read-only).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "codec/support/status.h"

namespace modelstore {

// Logical bytes by the way they are stored; a byte is counted once, at the first model (by creation) that holds it.
struct LevelBytes {
  uint64_t identical_file = 0, identical_tensor = 0, self = 0, delta = 0, raw = 0, content = 0, compact = 0,
           projected = 0;
};

struct ModelUsage {
  std::string name;
  std::string kind;  // "base" (others name it as their base), "derived" (made of its base), "finetune" (has a base),
                     // "files" (no tensors), else "model"
  std::string fidelity;  // "exact", "compact"
  // Of a compact model: its error relative to its delta's energy, what that was measured with ("plain", "moments"), and
  // how it was made. 0 and "" for an exact one.
  double drift = 0;
  std::string drift_kind, method;
  std::string recipe;          // of a derived model
  bool allow_compact = false;  // the daemon's policy may make it compact
  std::string base;            // as it was at the push; "" for none, or when that model was removed
  uint64_t logical_bytes = 0;
  uint64_t stored_bytes = 0;  // its exclusive share: its record, and files and tensors that no other model holds
  uint64_t shared_bytes = 0;  // coded bytes of content that other models hold too
  LevelBytes levels;          // of its own logical bytes
  int64_t created_ns = 0;
  uint64_t files = 0;
};

// stored_bytes: records of models, and what they need. That is more than the models' shares: what several hold, and
// what none lists any more but a finetune is stored against (its base was updated), is nobody's own.
struct StoreReport {
  uint64_t logical_bytes = 0, stored_bytes = 0, disk_bytes = 0;
  double saved_fraction = 0;  // 1 - stored / logical; 0 when empty
  LevelBytes levels;
  uint64_t prunable_bytes = 0;     // of tensors and files; blocks of unfinished pushes are found by prune alone
  std::vector<ModelUsage> models;  // sorted by name
};
Result<StoreReport> MakeReport(Catalog& catalog);

struct TensorUsage {
  std::string name, dtype, encoding, base_model, base_tensor;
  std::vector<uint64_t> shape;  // of a part of a compact tensor: rows and columns; of another part: its elements
  uint64_t logical_bytes = 0;
  uint64_t stored_bytes = 0;  // of a part: its share of what is stored for the whole
  // Encoding "compact" only: what is kept of its delta, and the drift that leaves.
  uint32_t rank = 0;
  bool has_residual = false;
  double drift = 0;
};
struct FileUsage {
  std::string path, sha256, kind;  // "safetensors", "content"
  uint64_t logical_bytes = 0, stored_bytes = 0;
  std::vector<TensorUsage> tensors;  // named tensors in file order
};
struct ModelDetail {
  ModelUsage usage;
  std::vector<FileUsage> files;  // without those that are left out
  uint64_t files_left_out = 0;
};
using MayReadFunction = std::function<bool(const ModelRecord&, const ModelFile&)>;
// Files for which `may_read` (null: all) says no are left out, and name no base. Errors: NotFound.
Result<ModelDetail> DescribeModel(Catalog& catalog, const std::string& name, const MayReadFunction& may_read = nullptr);

}  // namespace modelstore
