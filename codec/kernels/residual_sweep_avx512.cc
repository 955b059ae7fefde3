// The loops need the vectors before them.
// clang-format off
#include "codec/kernels/vectors_avx512.h"
#include "codec/kernels/residual_sweep_loops.h"
// clang-format on
#include "codec/kernels/residual_sweep_targets.h"

namespace modelstore {

const ResidualSweep kSweepAvx512 = Sweep;

}  // namespace modelstore
