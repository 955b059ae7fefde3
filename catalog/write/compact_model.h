// Making a stored exact model compact (layer: catalog/write). docs/compact.md.
#pragma once

#include "catalog/write/push.h"

namespace modelstore {

// Replaces the model, under its name and id, by what a compact push of its files stores; who reads it reads the exact
// files to the end, and prune frees them. `options.name` is the model; `update` is implied. Errors: NotFound,
// HasDependents (others are stored against it), Unsupported (compact already, no base, a budget that cannot be met),
// Busy (somebody else replaced it meanwhile), and Push's: the model is then as it was.
Result<PushReport> CompactModel(Catalog& catalog, const PushOptions& options, JobControl& job);

}  // namespace modelstore
