// BatchReader: makes a batch for a device of stored blocks and of what predicts them (layer: catalog/read; private).
//
// Not thread-safe. The CPU decodes little for a batch: a block that would need more of it is refused. Memory is never
// waited for.
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "catalog/read/block_cache.h"
#include "catalog/read/block_source.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/view_reader.h"
#include "codec/device/batch_builder.h"

namespace modelstore {

class BatchReader {
 public:
  struct Block {
    TensorRef tensor;
    uint32_t index = 0;
    BatchBuilder::Block block = 0;
  };

  // All outlive the object.
  BatchReader(BlockCache& cache, const ViewReader& views, BlockSource& blocks, BatchBuilder& builder)
      : cache_(cache), views_(views), blocks_(blocks), builder_(builder) {}

  // False: the device has no room left or no kernel for it, or the CPU would have to decode as much for the device as
  // the device for it. Errors: as reading the block.
  Result<bool> Add(const TensorRef& tensor, uint32_t index);
  // The blocks that were added.
  const std::vector<Block>& added() const { return added_; }

 private:
  struct Predicted {
    BatchBuilder::Prediction prediction;
    BlockPtr holder;  // of its bytes, unless they are a block's of the batch
  };

  Result<std::optional<BatchBuilder::Block>> AddCoded(const OpenTensor& tensor, uint32_t index);
  Result<std::optional<BatchBuilder::Block>> AddCompact(const OpenTensor& tensor, uint32_t index);
  // Elements of a view when one block of the base has all of them: a cached block, or a self-coded one that the device
  // decodes, too. Else nothing.
  Result<std::optional<Predicted>> Predict(const View& view, DType dtype, uint64_t begin, uint64_t elems);

  BlockCache& cache_;
  const ViewReader& views_;
  BlockSource& blocks_;
  BatchBuilder& builder_;
  std::vector<Block> added_;
  std::map<std::pair<TensorId, uint32_t>, BatchBuilder::Block> bases_;  // decoded in the batch for others
};

}  // namespace modelstore
