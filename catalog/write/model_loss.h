// What a store loses with the content of one model: asked by rm, and by an update, which takes the old content away
// (layer: catalog/write; private).
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "catalog/write/store_usage.h"

namespace modelstore {

struct ModelLoss {
  std::vector<char> own;             // of each tensor: that model alone holds it
  std::vector<char> still_needed;    // by another model, which holds it or something stored against it
  std::set<std::string> dependents;  // models that need what only that model holds
  uint64_t freed_bytes = 0;
};

// `leaving`: an index of usage.models().
ModelLoss LossOf(const StoreUsage& usage, uint32_t leaving);

// LossOf goes by short ids, which somebody may have made equal. Of the models that it takes for dependents these are
// some: derived from the model that leaves, or with a tensor stored against one that only that model holds.
// Errors: ResourceExhausted, Io.
Result<std::set<std::string>> ConfirmDependents(const KvReader& store, const StoreUsage& usage, uint32_t leaving,
                                                const ModelLoss& loss);

// What this file needs is still needed, although no model of `usage` holds the file.
void KeepForFile(const StoreUsage& usage, const UsageRecord& file, ModelLoss* loss);

// Adds to `batch` that what is lost with `model` has no sketch any more: no later push takes a tensor as its base that
// only waits for prune. What a record that is missing or damaged refers to keeps its sketch. Errors: ResourceExhausted.
Status RetireSketches(const KvReader& store, const StoreUsage& usage, const ModelRecord& model, const ModelLoss& loss,
                      WriteBatch* batch);

}  // namespace modelstore
