// Everything that changes or checks stored models besides push (layer: catalog/write).
//
// Thread-safe through the catalog's mutexes. Deleting publishes first and collects later: Remove only takes names away,
// Prune frees.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "catalog/read/catalog.h"
#include "codec/support/job_control.h"
#include "codec/support/status.h"

namespace modelstore {

struct RemoveReport {
  std::vector<std::string> models;
  uint64_t freed_bytes = 0;  // what prune will give back because of it (coded bytes and records)
};
// Asked about the model before any waiting and in the moment of changing it. Null: everything is allowed.
using ModelCheck = std::function<Status(const ModelRecord& model)>;
// Which models may be named to the user. Null: all.
using ModelFilter = std::function<bool(const ModelRecord& model)>;

// Waits for pushes and verifications that are running (phase "waiting for N running jobs").
// Errors: NotFound; HasDependents listing the models that need what only this one holds (those that `may_see` hides are
// counted); what `may_change` answers; Cancelled.
Result<RemoveReport> Remove(Catalog& catalog, const std::string& name, bool dry_run, JobControl& job,
                            const ModelCheck& may_change = nullptr, const ModelFilter& may_see = nullptr);

// Errors: NotFound, AlreadyExists (also `a` against `a/b`), InvalidArgument; what `may_change` answers.
Status Rename(Catalog& catalog, const std::string& from, const std::string& to, JobControl& job,
              const ModelCheck& may_change = nullptr);

struct PruneReport {
  uint64_t freed_bytes = 0;  // of records and blocks that nothing refers to
  uint64_t tensors = 0, files = 0, blocks = 0;
  uint64_t disk_bytes_before = 0, disk_bytes_after = 0;
};
// Removes what no model needs (removed models, unfinished pushes) and gives the space back. Keeps what open files need.
// Waits like Remove. Errors: Cancelled, Corruption, NoSpace, Io.
Result<PruneReport> Prune(Catalog& catalog, bool dry_run, JobControl& job);

struct VerifyFailure {
  std::string model, file;  // "" for what belongs to none
  std::string reason;
};
struct VerifyReport {
  uint64_t checked = 0;  // files
  uint64_t checked_bytes = 0;
  std::vector<VerifyFailure> failed;
};
// Decodes every file of the named models (all when empty) from the store's bytes, compares its SHA-256 and every
// tensor's hash, and so with the bases that these need. When all models are verified, what no model needs any more is
// decoded too, edges and sketches are compared with the tensors, the store's own checksums are checked, and the figures
// that are kept for report are put right. Errors only when it cannot run at all (NotFound, Cancelled, Io).
Result<VerifyReport> Verify(Catalog& catalog, const std::vector<std::string>& names, JobControl& job);

}  // namespace modelstore
