// The loops need the vectors before them.
// clang-format off
#include "codec/kernels/vectors_avx512.h"
#include "codec/kernels/ordered_product_loops.h"
// clang-format on
#include "codec/kernels/ordered_product_targets.h"

namespace modelstore {

const OrderedProduct kProductAvx512 = Product;

}  // namespace modelstore
