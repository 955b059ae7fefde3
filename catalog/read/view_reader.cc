#include "catalog/read/view_reader.h"

namespace modelstore {

Result<std::optional<ViewReader::BlockPart>> ViewReader::InOneBlock(const View& view, DType dtype, uint64_t begin,
                                                                    uint64_t elems) const {
  std::optional<BlockPart> part;
  uint64_t at = 0;
  auto segment = view.begin();
  while (segment != view.end() && begin >= at + segment->elems) at += segment++->elems;
  if (segment == view.end() || segment->kind != ViewSegment::Kind::kIdentity || begin + elems > at + segment->elems)
    return part;
  ASSIGN_OR_RETURN(TensorRef base, tensors_.GetReferenced(segment->base));
  const Frame& frame = base->frame;
  const uint64_t base_begin = segment->base_offset_elems + (begin - at);
  const uint64_t block = base_begin / frame.block_elems;
  if (frame.dtype != dtype || base_begin + elems > frame.elems || (base_begin + elems - 1) / frame.block_elems != block)
    return part;
  const auto index = static_cast<uint32_t>(block);
  const uint64_t offset_bytes = (base_begin - frame.BlockBegin(index)) * DTypeBytes(dtype);
  part = BlockPart{std::move(base), index, offset_bytes};
  return part;
}

}  // namespace modelstore
