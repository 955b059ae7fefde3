#include "codec/kernels/residual_sweep.h"

#include "codec/kernels/cpu_target.h"
#include "codec/kernels/residual_sweep_targets.h"

namespace modelstore {

ResidualSweep CurrentResidualSweep() {
  switch (CurrentCpuTarget()) {
#if defined(MODELSTORE_X86_KERNELS)
    case CpuTarget::kAvx512:
      return kSweepAvx512;
    case CpuTarget::kAvx2:
      return kSweepAvx2;
#endif
    default:
      return kSweepPlain;
  }
}

}  // namespace modelstore
