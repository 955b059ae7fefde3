#include "catalog/read/open_tensor.h"

#include "codec/support/bytes.h"

namespace modelstore {

std::string TensorName(const TensorId& id) { return "tensor " + ToHex(AsBytes(TensorKey(id))); }

std::string BlockName(const OpenTensor& tensor, uint32_t index) {
  return TensorName(tensor.id) + ", block " + std::to_string(index);
}

}  // namespace modelstore
