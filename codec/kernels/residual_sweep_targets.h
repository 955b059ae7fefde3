// The CPU-specific sweeps (layer: codec/kernels; private to it).
#pragma once

#include "codec/kernels/residual_sweep.h"

namespace modelstore {

extern const ResidualSweep kSweepPlain;
extern const ResidualSweep kSweepAvx2;
extern const ResidualSweep kSweepAvx512;

}  // namespace modelstore
