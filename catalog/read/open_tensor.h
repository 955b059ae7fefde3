// OpenTensor: a tensor's record, parsed and checked, from which its blocks can be decoded (layer: catalog/read).
//
// Immutable, so any number of threads may use one. An open tensor stays as it was when its record was read: a push may
// meanwhile replace the record by one of the same content (TensorTable::Renew).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "catalog/read/tensor_geometry.h"
#include "catalog/schema/records.h"
#include "codec/decode/frame.h"

namespace modelstore {

struct OpenTensor {
  TensorId id;
  TensorRecord record;
  Frame frame;
  // The most bytes that decoding one of its blocks holds at once, with all that its bases need. 0: not known yet.
  uint64_t peak_bytes = 0;
};
using TensorRef = std::shared_ptr<const OpenTensor>;

inline Geometry GeometryOf(const OpenTensor& tensor) {
  return {tensor.id, tensor.record.bytes, tensor.record.push,
          tensor.frame.block_elems * DTypeBytes(tensor.frame.dtype)};
}

// For messages: "tensor <key in hexadecimal>", and the same with ", block <index>" behind it.
std::string TensorName(const TensorId& id);
std::string BlockName(const OpenTensor& tensor, uint32_t index);

}  // namespace modelstore
