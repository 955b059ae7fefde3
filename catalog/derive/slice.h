// Slicing: the files of a variant whose residual stream is narrower (layer: catalog/derive; private).
//
// After SliceGPT (arXiv:2401.15024): the norms' weights go into the matrices that read them, the stream is turned into
// the principal axes of what the norms give, and the axes of least energy are cut off. Beyond the paper: matrices that
// read the stream rebuild what was cut off, as far as what is left tells of it (least squares by the moments), and axes
// are those of the moments of neighbouring norms together, since what one cuts off is lost to all that follow.
#pragma once

#include "catalog/derive/derive.h"
#include "catalog/derive/variant.h"
#include "catalog/write/moments_file.h"

namespace modelstore {

// Of `basis` kBlock the stream is in other axes at each norm and the folder has the modelling file that such a model
// needs; of kGlobal it is in one for all, and the architecture stays. Errors: as Derive.
Result<Variant> Slice(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options,
                      const MomentsFile* moments, JobControl& job);

// The size that is left: of kBlock a multiple of 8, of kGlobal one of the number of heads. Errors: InvalidArgument
// (nothing would be left).
Result<uint64_t> SlicedSize(uint64_t hidden, uint64_t heads, double slice, DeriveOptions::Basis basis);

}  // namespace modelstore
