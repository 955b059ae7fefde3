#include "codec/decode/block_decoder.h"

#include <cstring>
#include <string>

#include "codec/decode/encoding_rows.h"
#include "codec/kernels/convert.h"

namespace modelstore {

bool CanPredict(DType from, DType to) { return from == to || (DTypeIsFloat(from) && DTypeIsFloat(to)); }

void ConvertElements(DType from, DType to, ByteSpan in, MutableByteSpan out) {
  if (from == to) {
    if (!in.empty()) std::memcpy(out.data(), in.data(), in.size());
    return;
  }
  ConvertFloats(from, to, in.data(), out.data(), in.size() / DTypeBytes(from));
}

uint32_t BlockBytes(const Frame& frame, uint32_t index) { return frame.BlockElems(index) * DTypeBytes(frame.dtype); }

Status DecodeBlock(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction, MutableByteSpan out) {
  if (index >= frame.BlockCount()) return BadBlock(index, "its frame has only " + std::to_string(frame.BlockCount()));
  if (out.size() != BlockBytes(frame, index))
    return Internal("DecodeBlock: buffer of " + std::to_string(out.size()) + " bytes for a block of " +
                    std::to_string(BlockBytes(frame, index)));
  if (RowOf(frame.encoding).decode == nullptr) return BadBlock(index, "a computed tensor has no coded blocks");
  if (coded.size() == out.size()) {
    if (!out.empty()) std::memcpy(out.data(), coded.data(), out.size());
    return OkStatus();
  }
  if (coded.size() > out.size()) return BadBlock(index, "coded larger than raw");
  return RowOf(frame.encoding).decode(frame, index, coded, prediction, out);
}

}  // namespace modelstore
