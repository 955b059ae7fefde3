#include "catalog/write/tensor_data.h"

namespace modelstore {

Result<TensorData> TensorData::Load(const SourceReader& source, const SourceExtent& extent, uint64_t hold_bytes,
                                    Buffer* hold) {
  TensorData data(source, extent);
  if (extent.bytes <= hold_bytes) {
    const MutableByteSpan out = hold->Resize(extent.bytes);
    RETURN_IF_ERROR(source.ReadAt(extent.begin, out));
    data.held_ = out;
    data.is_held_ = true;
  }
  return data;
}

Result<ByteSpan> TensorData::Read(uint64_t offset, uint64_t bytes, Buffer* scratch) const {
  if (is_held_) return held_.subspan(offset, bytes);
  const MutableByteSpan out = scratch->Resize(bytes);
  RETURN_IF_ERROR(source_->ReadAt(extent_->begin + offset, out));
  return ByteSpan(out);
}

}  // namespace modelstore
