// The table of CPU-specific rebuilding loops (layer: codec/kernels; private to it).
#pragma once

#include "codec/kernels/compact_rebuild.h"

namespace modelstore {

extern const CompactKernels kCompactPlain;
extern const CompactKernels kCompactAvx2;
extern const CompactKernels kCompactAvx512;

}  // namespace modelstore
