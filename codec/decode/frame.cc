#include "codec/decode/frame.h"

#include <algorithm>
#include <limits>
#include <string>

#include "codec/decode/encodings.h"

namespace modelstore {
namespace {

// Blocks shorter than this have one stream.
constexpr uint32_t kTwoStreamElems = 8192;

}  // namespace

uint32_t Frame::BlockCount() const {
  return block_elems == 0 ? 0 : static_cast<uint32_t>((elems + block_elems - 1) / block_elems);
}

uint32_t Frame::BlockElems(uint32_t index) const {
  return static_cast<uint32_t>(std::min<uint64_t>(block_elems, elems - BlockBegin(index)));
}

uint32_t FirstStreamElems(uint32_t block_elems) {
  if (block_elems < kTwoStreamElems) return block_elems;
  return (block_elems / 2 + kSelfChunkElems - 1) / kSelfChunkElems * kSelfChunkElems;
}

Frame PlainFrame(Encoding encoding, DType dtype, uint64_t elems) {
  Frame frame;
  frame.encoding = encoding;
  frame.dtype = frame.coded_dtype = dtype;
  frame.elems = elems;
  frame.block_elems = kBlockBytes / DTypeBytes(dtype);
  return frame;
}

Bytes SerializeFrame(const Frame& frame) {
  ByteWriter out;
  out.U8(static_cast<uint8_t>(frame.encoding));
  out.U8(static_cast<uint8_t>(frame.dtype));
  if (FactsOf(frame.encoding).has_blocks) out.U8(static_cast<uint8_t>(frame.coded_dtype));
  out.Varint(frame.elems);
  out.Varint(frame.block_elems);
  RowOf(frame.encoding).serialize(frame, out);
  return out.Release();
}

Result<Frame> ParseFrame(ByteSpan bytes) {
  ByteReader in(bytes);
  Frame frame;
  const uint8_t encoding = in.U8();
  const uint8_t dtype = in.U8();
  const EncodingFacts* const facts = FindEncoding(encoding);
  const uint8_t coded_dtype = facts != nullptr && !facts->has_blocks ? dtype : in.U8();
  frame.elems = in.Varint();
  const uint64_t block_elems = in.Varint();
  if (!in.ok()) return Corruption("frame: cut short after " + std::to_string(bytes.size()) + " bytes");
  if (facts == nullptr)
    return Unsupported("frame: encoding " + std::to_string(encoding) + " is not known to this version");
  if (!DTypeIsKnown(dtype) || !DTypeIsKnown(coded_dtype))
    return Unsupported("frame: dtype " + std::to_string(dtype) + "/" + std::to_string(coded_dtype) +
                       " is not known to this version");
  frame.encoding = static_cast<Encoding>(encoding);
  frame.dtype = static_cast<DType>(dtype);
  frame.coded_dtype = static_cast<DType>(coded_dtype);
  if (block_elems == 0 || block_elems > kMaxBlockElems)
    return Corruption("frame: blocks of " + std::to_string(block_elems) + " elements");
  frame.block_elems = static_cast<uint32_t>(block_elems);
  if (frame.elems > std::numeric_limits<uint64_t>::max() / 16 ||
      (frame.elems + block_elems - 1) / block_elems > std::numeric_limits<uint32_t>::max())
    return Corruption("frame: " + std::to_string(frame.elems) + " elements are too many for its blocks");
  RETURN_IF_ERROR(RowOf(frame.encoding).parse(in, frame));
  return frame;
}

}  // namespace modelstore
