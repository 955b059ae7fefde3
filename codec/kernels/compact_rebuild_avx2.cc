// The loops need the vectors before them.
// clang-format off
#include "codec/kernels/vectors_avx2.h"
#include "codec/kernels/compact_rebuild_loops.h"
// clang-format on
#include "codec/kernels/compact_rebuild_targets.h"

namespace modelstore {

const CompactKernels kCompactAvx2 = kKernels;

}  // namespace modelstore
