// Layers dropped: the files of a variant (layer: catalog/derive; private; Just CHOP, arXiv:2305.14864).
#pragma once

#include "catalog/derive/derive.h"
#include "catalog/derive/variant.h"
#include "catalog/write/moments_file.h"

namespace modelstore {

// `moments` may be null. Errors: as Derive.
Result<Variant> ChopLayers(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options,
                           const MomentsFile* moments, JobControl& job);

}  // namespace modelstore
