// ViewReader: elements of a view, put together from decoded blocks of the tensors that the view names (layer:
// catalog/read; private).
//
// A view (docs/format.md) lists stretches of elements: each is of one tensor, the base, from some element of the base
// on, or has no base. The reader turns a range of the view into parts of blocks. Decoding, pushing and a batch for a
// device all read views here, so all of them see the same bits of a prediction.
//
// Whoever reads gives `get_block(const OpenTensor& base, uint32_t index) -> Result<BlockPtr>`, because the right way to
// a block differs: a decode gets the blocks of its bases within the memory that it has reserved, a push reserves for
// each block, reading ahead does not wait for memory. The functions are templates, so that a block costs no indirect
// call.
//
// Thread-safe, without a lock or state of its own. `tensors` outlives the object.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "catalog/read/block_cache.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/tensor_table.h"
#include "catalog/schema/records.h"
#include "codec/decode/block_decoder.h"

namespace modelstore {

class ViewReader {
 public:
  explicit ViewReader(TensorTable& tensors) : tensors_(tensors) {}

  // Where elements lie within one decoded block.
  struct BlockPart {
    TensorRef base;
    uint32_t index = 0;  // of the block
    uint64_t offset_bytes = 0;
  };
  // Where elements [begin, begin + elems) of the view are, when one block of one base has all of them and in `dtype`,
  // so that they can be used where they lie; nothing when it is not that simple. Errors: as TensorTable::GetReferenced.
  Result<std::optional<BlockPart>> InOneBlock(const View& view, DType dtype, uint64_t begin, uint64_t elems) const;

  // Converts elements [begin, ...) of the view to `dtype`, as many as `out` has room for; elements without a base are
  // zero. Errors: Corruption where the view and a base do not fit, else those of get_block.
  template <typename GetBlockFn>
  Status Assemble(const View& view, DType dtype, uint64_t begin, MutableByteSpan out,
                  const GetBlockFn& get_block) const;

  // Elements of a view and what holds them: a block of the base, or a buffer.
  struct Elements {
    ByteSpan bytes;
    BlockPtr block;
    std::unique_ptr<std::byte[]> buffer;
  };
  // Elements [begin, begin + elems) of the view in `dtype`: without a copy when InOneBlock finds them, else assembled.
  template <typename GetBlockFn>
  Result<Elements> Read(const View& view, DType dtype, uint64_t begin, uint64_t elems,
                        const GetBlockFn& get_block) const;

 private:
  // Assemble of elements [begin, ...) of one base.
  template <typename GetBlockFn>
  Status AssembleFrom(const TensorId& base_id, DType dtype, uint64_t begin, MutableByteSpan out,
                      const GetBlockFn& get_block) const;

  TensorTable& tensors_;
};

template <typename GetBlockFn>
Status ViewReader::Assemble(const View& view, DType dtype, uint64_t begin, MutableByteSpan out,
                            const GetBlockFn& get_block) const {
  const size_t width = DTypeBytes(dtype);
  uint64_t at = 0;
  for (const ViewSegment& segment : view) {
    if (out.empty()) return OkStatus();
    const uint64_t segment_end = at + segment.elems;
    if (begin < segment_end) {
      const uint64_t elems = std::min<uint64_t>(segment_end - begin, out.size() / width);
      const MutableByteSpan part = out.first(elems * width);
      if (segment.kind == ViewSegment::Kind::kNone) {
        std::memset(part.data(), 0, part.size());
      } else {
        RETURN_IF_ERROR(AssembleFrom(segment.base, dtype, segment.base_offset_elems + (begin - at), part, get_block));
      }
      out = out.subspan(part.size());
      begin += elems;
    }
    at = segment_end;
  }
  if (!out.empty()) return Corruption("its view of the base ends before the tensor");
  return OkStatus();
}

template <typename GetBlockFn>
Status ViewReader::AssembleFrom(const TensorId& base_id, DType dtype, uint64_t begin, MutableByteSpan out,
                                const GetBlockFn& get_block) const {
  ASSIGN_OR_RETURN(const TensorRef base, tensors_.GetReferenced(base_id));
  const Frame& frame = base->frame;
  const size_t base_width = DTypeBytes(frame.dtype);
  const size_t width = DTypeBytes(dtype);
  if (!CanPredict(frame.dtype, dtype) || begin > frame.elems || out.size() / width > frame.elems - begin)
    return Corruption("its view does not fit its base, " + TensorName(base_id));
  while (!out.empty()) {
    const uint32_t index = static_cast<uint32_t>(begin / frame.block_elems);
    const uint64_t skip = begin - frame.BlockBegin(index);
    const uint64_t elems = std::min<uint64_t>(frame.BlockElems(index) - skip, out.size() / width);
    ASSIGN_OR_RETURN(const BlockPtr block, get_block(*base, index));
    ConvertElements(frame.dtype, dtype, block->bytes().subspan(skip * base_width, elems * base_width),
                    out.first(elems * width));
    out = out.subspan(elems * width);
    begin += elems;
  }
  return OkStatus();
}

template <typename GetBlockFn>
Result<ViewReader::Elements> ViewReader::Read(const View& view, DType dtype, uint64_t begin, uint64_t elems,
                                              const GetBlockFn& get_block) const {
  const size_t bytes = elems * DTypeBytes(dtype);
  Elements read;
  ASSIGN_OR_RETURN(const std::optional<BlockPart> in_place, InOneBlock(view, dtype, begin, elems));
  if (in_place) {
    ASSIGN_OR_RETURN(read.block, get_block(*in_place->base, in_place->index));
    read.bytes = read.block->bytes().subspan(in_place->offset_bytes, bytes);
    return read;
  }
  read.buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
  const MutableByteSpan assembled(read.buffer.get(), bytes);
  read.bytes = assembled;
  RETURN_IF_ERROR(Assemble(view, dtype, begin, assembled, get_block));
  return read;
}

}  // namespace modelstore
