// Layers dropped: the files of a variant (layer: catalog/derive; private; Just CHOP, arXiv:2305.14864).
#pragma once

#include <string>
#include <vector>

#include "catalog/derive/derive.h"
#include "catalog/derive/source_checkpoint.h"
#include "catalog/write/moments_file.h"

namespace modelstore {

// What a variant is made of, to be pushed, and what to call it.
struct Variant {
  std::vector<SourceFile> files;
  std::string recipe;
};

// `moments` may be null. Errors: as Derive.
Result<Variant> ChopLayers(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options,
                           const MomentsFile* moments, JobControl& job);

}  // namespace modelstore
