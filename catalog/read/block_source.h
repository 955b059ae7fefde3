// BlockSource: a decoded block of a tensor, from the cache, from the thread that decodes the block already, or decoded
// now (layer: catalog/read; private).
//
// Thread-safe; no lock is held while a block is decoded or read from the store.
//
// Memory: before a decode starts it reserves the most that it can ever hold (OpenTensor::peak_bytes: coded bytes,
// prediction, output, and the same for the blocks of its bases), and it reserves nothing on the way. A function that
// takes `const Reservation& held` works within what its caller has reserved: the parameter is a proof, which no
// function needs to look into. So whoever decodes can finish, and a decode waits only for decodes of a smaller depth:
// therefore no deadlock (block_cache.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "catalog/read/block_cache.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/tensor_table.h"
#include "catalog/read/view_reader.h"
#include "catalog/store/kv_store.h"

namespace modelstore {

class BlockSource {
 public:
  using Use = BlockCache::Use;
  using Reservation = BlockCache::Reservation;

  // All outlive the object.
  BlockSource(const KvReader& store, BlockCache& cache, TensorTable& tensors, const ViewReader& views)
      : store_(store), cache_(cache), tensors_(tensors), views_(views) {}

  // The block, which stays in the cache. wait = false: null when memory would have to be waited for. Errors:
  // Corruption, Io, ResourceExhausted (the block needs more than the whole budget).
  Result<BlockPtr> Get(const OpenTensor& tensor, uint32_t index, Use use, bool wait = true);
  // The block, decoded from the store's own bytes and not cached: for checking what is stored. The blocks of its bases
  // may come from the cache. Errors: as Get.
  Result<BlockPtr> GetFresh(const OpenTensor& tensor, uint32_t index);
  // Elements [begin, ...) of a view converted to `dtype`, as many as `out` has room for. wait = false:
  // ResourceExhausted when memory would have to be waited for. Errors: as Get.
  Status Assemble(const View& view, DType dtype, uint64_t begin, MutableByteSpan out, bool wait = true);

  // Decodes the block into the cache; does nothing when the memory for reading ahead is taken. Errors: as Get.
  Status Prefetch(const OpenTensor& tensor, uint32_t index);
  // Copies a block that a device decoded into the cache, unless somebody was faster or there is no room for reading
  // ahead. The result: how many bytes were taken.
  uint64_t Keep(const OpenTensor& tensor, uint32_t index, ByteSpan bytes);

  // The block as it is stored, sealed (OpenBlock). Of a tensor that is not computed. Errors: Corruption, Io.
  Result<StoredValue> LoadStored(const OpenTensor& tensor, uint32_t index) const;

  uint64_t decoded_blocks() const { return decoded_blocks_.load(std::memory_order_relaxed); }
  uint64_t decoded_bytes() const { return decoded_bytes_.load(std::memory_order_relaxed); }

 private:
  // What one decode of a block of the tensor may hold.
  Result<uint64_t> PeakBytes(const OpenTensor& tensor);
  // An empty reservation, with wait = false, when memory would have to be waited for.
  Result<Reservation> Reserve(const OpenTensor& tensor, uint32_t index, bool wait = true);
  // The block from the cache, from the decode under way, or decoded here; the block is charged from `own`.
  Result<BlockPtr> Join(Reservation own, const OpenTensor& tensor, uint32_t index, Use use);
  // A block of a base, for a decode that has reserved for its bases, too: as Join, but nothing is charged from `held`.
  Result<BlockPtr> BaseBlock(const Reservation& held, const OpenTensor& base, uint32_t index);
  // BaseBlock as the function that ViewReader asks for blocks.
  auto BasesWithin(const Reservation& held) {
    return [this, &held](const OpenTensor& base, uint32_t index) { return BaseBlock(held, base, index); };
  }

  // Decodes, and where that fails once more by the record that the tensor has now, if that is another one. Whoever
  // waits for the block hears the failure, so nothing is thrown; messages name the block.
  Result<BlockPtr> Decode(const Reservation& held, const OpenTensor& tensor, uint32_t index) noexcept;
  class Inputs;
  Result<BlockPtr> DecodeByRecord(const Reservation& held, const OpenTensor& tensor, uint32_t index);
  Result<BlockPtr> DecodeStored(const Reservation& held, const OpenTensor& tensor, uint32_t index);
  // A block of a tensor that has none: what its encoding makes of the tensor's inputs.
  Result<BlockPtr> Compute(const Reservation& held, const OpenTensor& tensor, uint32_t index);
  void CountDecoded(uint64_t bytes);

  const KvReader& store_;
  BlockCache& cache_;
  TensorTable& tensors_;
  const ViewReader& views_;
  std::atomic<uint64_t> decoded_blocks_{0}, decoded_bytes_{0};
};

}  // namespace modelstore
