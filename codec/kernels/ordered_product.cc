#include "codec/kernels/ordered_product.h"

#include "codec/kernels/cpu_target.h"
#include "codec/kernels/ordered_product_targets.h"

namespace modelstore {

OrderedProduct CurrentOrderedProduct() {
  switch (CurrentCpuTarget()) {
#if defined(MODELSTORE_X86_KERNELS)
    case CpuTarget::kAvx512:
      return kProductAvx512;
    case CpuTarget::kAvx2:
      return kProductAvx2;
#endif
    default:
      return kProductPlain;
  }
}

}  // namespace modelstore
