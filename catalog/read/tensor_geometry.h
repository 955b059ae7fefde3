// Geometry: where a tensor's blocks are and what each of them is called (layer: catalog/read).
//
// A few plain numbers, so that a read whose blocks are all cached needs no parsed tensor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "catalog/schema/records.h"

namespace modelstore {

// A block of a tensor. The tensor is part of the name, not only where its record says that the block is stored: blocks
// then wait only for blocks of a smaller depth, even when damaged records of two tensors name the same stored block.
// The push is never reused, so a cached block can never be mistaken for one of a later record.
struct BlockId {
  TensorId tensor;
  PushId push = 0;
  uint32_t index = 0;  // within the tensor
  bool operator==(const BlockId&) const = default;
};

struct Geometry {
  TensorId tensor;
  uint64_t tensor_bytes = 0;
  PushId push = 0;
  uint32_t block_bytes = 0;  // of every block but the last

  BlockId Id(uint32_t index) const { return {tensor, push, index}; }
  uint64_t BytesOf(uint32_t index) const {
    return std::min<uint64_t>(block_bytes, tensor_bytes - uint64_t{index} * block_bytes);
  }
};

}  // namespace modelstore
