// BatchReader: makes a batch for a device of stored blocks and of what predicts them (layer: catalog/read; private).
// Not thread-safe.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "catalog/read/block_cache.h"
#include "catalog/read/tensor_table.h"
#include "catalog/store/kv_store.h"
#include "codec/device/batch_builder.h"

namespace modelstore {

class BatchReader {
 public:
  // Elements of a view from one on, converted, from the cache or decoded now; fails rather than waits for memory.
  using Assemble = std::function<Status(const std::vector<ViewSegment>&, DType, uint64_t begin, MutableByteSpan out)>;
  struct Block {
    TensorRef tensor;
    uint32_t index = 0;
    BatchBuilder::Block block = 0;
  };

  // All outlive the object.
  BatchReader(const KvReader& store, BlockCache& cache, TensorTable& tensors, BatchBuilder& builder, Assemble assemble)
      : store_(store), cache_(cache), tensors_(tensors), builder_(builder), assemble_(std::move(assemble)) {}

  // False: the device has no room left or no kernel for it, or the CPU would have to decode as much for the device as
  // the device for it. Errors: as reading the block.
  Result<bool> Add(const TensorRef& tensor, uint32_t index);
  // Those that were added.
  const std::vector<Block>& blocks() const { return blocks_; }

 private:
  struct Predicted {
    BatchBuilder::Prediction prediction;
    BlockPtr holder;  // of its bytes, unless they are a block's of the batch
  };

  Result<std::optional<BatchBuilder::Block>> AddCoded(const OpenTensor& tensor, uint32_t index);
  Result<std::optional<BatchBuilder::Block>> AddCompact(const OpenTensor& tensor, uint32_t index);
  // Elements of a view, of `dtype`: of one cached block, or of a self-coded one that is decoded on the device too. Else
  // nothing.
  Result<std::optional<Predicted>> Predict(const std::vector<ViewSegment>& view, DType dtype, uint64_t begin,
                                           uint64_t elems);

  const KvReader& store_;
  BlockCache& cache_;
  TensorTable& tensors_;
  BatchBuilder& builder_;
  const Assemble assemble_;
  std::vector<Block> blocks_;
  std::map<std::pair<TensorId, uint32_t>, BatchBuilder::Block> bases_;  // decoded in the batch for others
};

}  // namespace modelstore
