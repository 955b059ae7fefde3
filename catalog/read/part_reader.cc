#include "catalog/read/part_reader.h"

#include <algorithm>

namespace modelstore {

template <typename ResolveFn>
Status PartReader::Find(const Geometry& geometry, uint64_t offset, MutableByteSpan out, const ResolveFn& resolve,
                        std::vector<Part>* parts) {
  while (!out.empty()) {
    Part part;
    part.index = static_cast<uint32_t>(offset / geometry.block_bytes);
    part.id = geometry.Id(part.index);
    part.begin = static_cast<size_t>(offset % geometry.block_bytes);
    const size_t block_bytes = geometry.BytesOf(part.index);
    part.out = out.first(std::min(out.size(), block_bytes - part.begin));
    out = out.subspan(part.out.size());
    offset += part.out.size();
    BlockPtr block = cache_.Find(part.id, BlockCache::Use::kRead);
    if (block != nullptr && block->bytes().size() == block_bytes) {
      part.TakeFrom(std::move(block));
    } else {
      ASSIGN_OR_RETURN(part.tensor, resolve());
      part.id.push = part.tensor->record.push;
    }
    parts->push_back(std::move(part));
  }
  return OkStatus();
}

Status PartReader::Fill(std::vector<Part>& parts) {
  std::vector<Part*> missing;
  for (Part& part : parts)
    if (part.bytes.empty()) missing.push_back(&part);
  const auto fill = [&](bool wait) {
    const Status status = pool_.ParallelFor(missing.size(), [&](size_t i) -> Status {
      Part& part = *missing[i];
      ASSIGN_OR_RETURN(BlockPtr block, blocks_.Get(*part.tensor, part.index, BlockCache::Use::kRead, wait));
      if (block == nullptr) return OkStatus();
      part.TakeFrom(std::move(block));
      if (wait) part.Copy();
      return OkStatus();
    });
    std::erase_if(missing, [](const Part* part) { return !part->bytes.empty(); });
    return status;
  };
  if (missing.empty()) return OkStatus();
  RETURN_IF_ERROR(fill(false));
  if (missing.empty()) return OkStatus();
  for (Part& part : parts)
    if (part.block != nullptr) part.Copy();
  return fill(true);
}

Result<std::vector<Part>> PartReader::OfFile(const FileRef& file, uint64_t offset, MutableByteSpan out) {
  std::vector<Part> parts;
  if (offset >= file->bytes() || out.empty()) return parts;
  const uint64_t end = offset + std::min<uint64_t>(out.size(), file->bytes() - offset);
  RETURN_IF_ERROR(file->ForExtents(offset, end, [&](size_t e, uint64_t skip, uint64_t n) -> Status {
    const Extent& extent = file->record().extents[e];
    const MutableByteSpan of_extent = out.first(n);
    out = out.subspan(n);
    if (extent.kind == Extent::Kind::kLiteral) {
      Part part;
      part.out = of_extent;
      part.bytes = ByteSpan(extent.literal).subspan(skip, n);
      parts.push_back(std::move(part));
      return OkStatus();
    }
    ASSIGN_OR_RETURN(const Geometry geometry, files_.GeometryOfExtent(*file, e));
    return Find(
        geometry, extent.offset_bytes + skip, of_extent, [&] { return files_.TensorOf(*file, e); }, &parts);
  }));
  const Status status = Fill(parts);
  if (!status.ok()) return status.WithContext(file->Name());
  return parts;
}

Result<std::vector<Part>> PartReader::OfTensor(const TensorRef& tensor, uint64_t offset, MutableByteSpan out) {
  std::vector<Part> parts;
  Geometry geometry = GeometryOf(*tensor);
  geometry.tensor_bytes = tensor->frame.elems * DTypeBytes(tensor->frame.dtype);
  RETURN_IF_ERROR(Find(
      geometry, offset, out, [&]() -> Result<TensorRef> { return tensor; }, &parts));
  RETURN_IF_ERROR(Fill(parts));
  return parts;
}

}  // namespace modelstore
