#include "catalog/read/block_source.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "catalog/read/block_ref.h"
#include "codec/decode/block_decoder.h"
#include "codec/decode/encodings.h"
#include "codec/support/guarded.h"

namespace modelstore {
namespace {

// A cached block may be one that another record of the tensor described.
Status CheckSize(const BlockPtr& block, const OpenTensor& tensor, uint32_t index) {
  if (block->bytes().size() == BlockBytes(tensor.frame, index)) return OkStatus();
  return Corruption(BlockName(tensor, index) + ": the cached block has another size than its record says");
}

// What the block takes of the ledger while it is cached.
uint64_t TakenBytes(const OpenTensor& tensor, uint32_t index) {
  return BlockMemory::TakenBytes(BlockBytes(tensor.frame, index));
}

}  // namespace

Result<BlockPtr> BlockSource::Get(const OpenTensor& tensor, uint32_t index, Use use, bool wait) {
  if (BlockPtr block = cache_.Find(GeometryOf(tensor).Id(index), use)) {
    RETURN_IF_ERROR(CheckSize(block, tensor, index));
    return block;
  }
  ASSIGN_OR_RETURN(Reservation own, Reserve(tensor, index, wait));
  if (!own) return BlockPtr();
  return Join(std::move(own), tensor, index, use);
}

Result<BlockPtr> BlockSource::GetFresh(const OpenTensor& tensor, uint32_t index) {
  ASSIGN_OR_RETURN(Reservation own, Reserve(tensor, index));
  ASSIGN_OR_RETURN(BlockPtr block, Decode(own, tensor, index));
  cache_.Charge(block, own);
  return block;
}

Status BlockSource::Assemble(const View& view, DType dtype, uint64_t begin, MutableByteSpan out, bool wait) {
  return views_.Assemble(view, dtype, begin, out, [&](const OpenTensor& base, uint32_t index) -> Result<BlockPtr> {
    ASSIGN_OR_RETURN(BlockPtr block, Get(base, index, Use::kPredict, wait));
    if (block == nullptr) return ResourceExhausted("no memory is free for reading now");
    return block;
  });
}

Status BlockSource::Prefetch(const OpenTensor& tensor, uint32_t index) {
  ASSIGN_OR_RETURN(const uint64_t peak_bytes, PeakBytes(tensor));
  Reservation own = cache_.TryReserve(peak_bytes, TakenBytes(tensor, index));
  return own ? Join(std::move(own), tensor, index, Use::kPrefetch).status() : OkStatus();
}

uint64_t BlockSource::Keep(const OpenTensor& tensor, uint32_t index, ByteSpan bytes) {
  const BlockId id = GeometryOf(tensor).Id(index);
  if (cache_.Contains(id)) return 0;
  const uint64_t taken = BlockMemory::TakenBytes(bytes.size());
  Reservation own = cache_.TryReserve(taken, taken);
  BlockPtr block = own ? Block::Create(cache_.ledger(), bytes.size()) : nullptr;
  if (block == nullptr) return 0;
  BlockCache::Flight mine;
  (void)cache_.Join(id, Use::kPrefetch, &own, taken, &mine);
  if (!mine) return 0;
  std::memcpy(block->mutable_bytes().data(), bytes.data(), bytes.size());
  cache_.Finish(std::move(mine), Result<BlockPtr>(block), Use::kPrefetch, &own);
  CountDecoded(bytes.size());
  return bytes.size();
}

Result<StoredValue> BlockSource::LoadStored(const OpenTensor& tensor, uint32_t index) const {
  auto stored = store_.Get(Family::kBlocks, BlockKey(tensor.record.push, tensor.record.first_block + index));
  if (!stored.ok() && stored.status().code() == StatusCode::kNotFound)
    return Corruption("the store lost it; remove the models that need it, prune, and push them again");
  return stored;
}

Result<uint64_t> BlockSource::PeakBytes(const OpenTensor& tensor) {
  if (tensor.peak_bytes != 0) return tensor.peak_bytes;
  auto bytes = tensors_.CheckView(tensor);
  if (!bytes.ok()) return bytes.status().WithContext(TensorName(tensor.id));
  return bytes;
}

Result<BlockSource::Reservation> BlockSource::Reserve(const OpenTensor& tensor, uint32_t index, bool wait) {
  assert(!wait || BlockRef::HeldHere() <= 0);
  ASSIGN_OR_RETURN(const uint64_t peak_bytes, PeakBytes(tensor));
  auto own = cache_.Reserve(peak_bytes, wait);
  if (!own.ok()) return own.status().WithContext(BlockName(tensor, index));
  return own;
}

Result<BlockPtr> BlockSource::Join(Reservation own, const OpenTensor& tensor, uint32_t index, Use use) {
  BlockCache::Flight mine;
  auto block = cache_.Join(GeometryOf(tensor).Id(index), use, &own, TakenBytes(tensor, index), &mine);
  if (mine) {
    block = Decode(own, tensor, index);
    cache_.Finish(std::move(mine), block, use, &own);
  }
  if (block.ok()) RETURN_IF_ERROR(CheckSize(*block, tensor, index));
  return block;
}

Result<BlockPtr> BlockSource::BaseBlock(const Reservation& held, const OpenTensor& base, uint32_t index) {
  BlockCache::Flight mine;
  auto block = cache_.Join(GeometryOf(base).Id(index), Use::kPredict, nullptr, 0, &mine);
  if (mine) {
    block = Decode(held, base, index);
    cache_.Finish(std::move(mine), block, Use::kPredict, nullptr);
  }
  if (block.ok()) RETURN_IF_ERROR(CheckSize(*block, base, index));
  return block;
}

Result<BlockPtr> BlockSource::Decode(const Reservation& held, const OpenTensor& tensor, uint32_t index) noexcept {
  assert(held);
  return Guarded([&]() -> Result<BlockPtr> {
    auto block = DecodeByRecord(held, tensor, index);
    if (!block.ok()) {
      // The reservation was made for the old record.
      const Result<TensorRef> now = tensors_.Renew(tensor);
      if (now.ok() && *now != nullptr && (*now)->peak_bytes <= tensor.peak_bytes)
        block = DecodeByRecord(held, **now, index);
    }
    if (!block.ok()) return block.status().WithContext(BlockName(tensor, index));
    CountDecoded((*block)->bytes().size());
    return block;
  });
}

Result<BlockPtr> BlockSource::DecodeByRecord(const Reservation& held, const OpenTensor& tensor, uint32_t index) {
  const bool is_computed = RowOf(tensor.frame.encoding).rebuild != nullptr;
  return is_computed ? Compute(held, tensor, index) : DecodeStored(held, tensor, index);
}

Result<BlockPtr> BlockSource::DecodeStored(const Reservation& held, const OpenTensor& tensor, uint32_t index) {
  const Frame& frame = tensor.frame;
  const uint32_t out_bytes = BlockBytes(frame, index);
  ASSIGN_OR_RETURN(const StoredValue stored, LoadStored(tensor, index));
  ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(stored.bytes()));
  if (coded.size() > out_bytes) {
    return Corruption("it is stored in " + std::to_string(coded.size()) + " bytes, decoded it has only " +
                      std::to_string(out_bytes));
  }
  ViewReader::Elements prediction;
  if (frame.encoding == Encoding::kDelta && coded.size() != out_bytes) {
    ASSIGN_OR_RETURN(prediction, views_.Read(tensor.record.ViewOf(InputRole::kBase), frame.coded_dtype,
                                             frame.BlockBegin(index), frame.BlockElems(index), BasesWithin(held)));
  }
  BlockPtr block = Block::Create(cache_.ledger(), out_bytes);
  if (block == nullptr) return OutOfMemory();
  RETURN_IF_ERROR(DecodeBlock(frame, index, coded, prediction.bytes, block->mutable_bytes()));
  return block;
}

// What a block of a tensor is computed from, while the memory for that is held.
class BlockSource::Inputs final : public InputReader {
 public:
  Inputs(BlockSource& blocks, const Reservation& held, const TensorRecord& record)
      : blocks_(blocks), held_(held), record_(record) {}

  Status Read(InputRole role, DType dtype, uint64_t begin, MutableByteSpan out) override {
    return blocks_.views_.Assemble(record_.ViewOf(role), dtype, begin, out, blocks_.BasesWithin(held_));
  }
  Result<ByteSpan> Borrow(InputRole role, DType dtype, uint64_t begin, uint64_t elems) override {
    borrowed_ = {};
    ASSIGN_OR_RETURN(borrowed_,
                     blocks_.views_.Read(record_.ViewOf(role), dtype, begin, elems, blocks_.BasesWithin(held_)));
    return borrowed_.bytes;
  }

 private:
  BlockSource& blocks_;
  const Reservation& held_;
  const TensorRecord& record_;
  ViewReader::Elements borrowed_;
};

Result<BlockPtr> BlockSource::Compute(const Reservation& held, const OpenTensor& tensor, uint32_t index) {
  BlockPtr block = Block::Create(cache_.ledger(), BlockBytes(tensor.frame, index));
  if (block == nullptr) return OutOfMemory();
  Inputs inputs(*this, held, tensor.record);
  RETURN_IF_ERROR(RowOf(tensor.frame.encoding).rebuild(tensor.frame, index, inputs, block->mutable_bytes()));
  return block;
}

void BlockSource::CountDecoded(uint64_t bytes) {
  decoded_blocks_.fetch_add(1, std::memory_order_relaxed);
  decoded_bytes_.fetch_add(bytes, std::memory_order_relaxed);
}

}  // namespace modelstore
