// The CPU-specific products (layer: codec/kernels; private to it).
#pragma once

#include "codec/kernels/ordered_product.h"

namespace modelstore {

extern const OrderedProduct kProductPlain;
extern const OrderedProduct kProductAvx2;
extern const OrderedProduct kProductAvx512;

}  // namespace modelstore
