#include "codec/decode/frame.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace modelstore {
namespace {

constexpr uint8_t kFlagLowBit = 1;
// Blocks shorter than this have one stream.
constexpr uint32_t kTwoStreamElems = 8192;

bool IsEntropyCoded(Encoding e) { return e == Encoding::kSelf || e == Encoding::kDelta; }

// Bits that hold a count of raw bits, 0..width.
unsigned RawCountBits(DType coded_dtype) {
  switch (DTypeBytes(coded_dtype)) {
    case 1:
      return 4;
    case 2:
      return 5;
    case 4:
      return 6;
    default:
      return 7;
  }
}

unsigned SymbolCountBits(Encoding e) { return e == Encoding::kDelta ? 4 : 7; }
unsigned MaxSymbols(Encoding e) { return e == Encoding::kDelta ? kDeltaSymbols : kSelfSymbols; }
unsigned MaxContexts(Encoding e) { return e == Encoding::kDelta ? kDeltaContexts : kSelfClasses; }

Status ParseModel(ByteReader& in, Frame& frame) {
  const uint8_t flags = in.U8();
  if (flags & ~kFlagLowBit) return Unsupported("frame: unknown flags " + std::to_string(flags));
  frame.model.low_bit = (flags & kFlagLowBit) != 0;
  if (frame.model.low_bit && frame.encoding == Encoding::kDelta)
    return Corruption("frame: a delta with the flag low_bit");
  if (frame.encoding == Encoding::kDelta) {
    const uint64_t low = in.Varint();
    if (low > 0x7ff) return Corruption("frame: lowest exponent " + std::to_string(low) + " exceeds any float's");
    frame.model.exponent_low = static_cast<uint16_t>(low);
  }
  const unsigned contexts = in.U8();
  if (!in.ok() || contexts > MaxContexts(frame.encoding))
    return Corruption("frame: " + std::to_string(contexts) + " contexts");
  const unsigned width = DTypeBytes(frame.coded_dtype) * 8;
  const unsigned raw_count_bits = RawCountBits(frame.coded_dtype);
  BitReader bits(in.Take(in.remaining()));
  frame.model.contexts.resize(contexts);
  for (RansContext& context : frame.model.contexts) {
    const unsigned count = bits.Get(SymbolCountBits(frame.encoding));
    if (count > MaxSymbols(frame.encoding))
      return Corruption("frame: a context of " + std::to_string(count) + " symbols");
    context.resize(count);
    uint64_t base = 0;
    uint32_t start = 0;
    for (unsigned s = 0; s < count; ++s) {
      RansSymbol& symbol = context[s];
      const unsigned raw_bits = bits.Get(raw_count_bits);
      if (raw_bits > width) return Corruption("frame: a symbol with " + std::to_string(raw_bits) + " raw bits");
      symbol.raw_bits = static_cast<uint8_t>(raw_bits);
      symbol.base = base;
      if (raw_bits < 64) base += uint64_t{1} << raw_bits;
      const uint32_t freq = s + 1 < count ? bits.Get(kProbBits) : kProbScale - start;
      if (start + freq > kProbScale) return Corruption("frame: frequencies exceed their sum");
      symbol.start = static_cast<uint16_t>(start);
      symbol.freq = static_cast<uint16_t>(freq);
      start += freq;
    }
  }
  if (!bits.ok()) return Corruption("frame: symbol tables are cut short");
  if (!bits.AtPadding()) return Corruption("frame: bytes after its symbol tables");
  return OkStatus();
}

void SerializeModel(const Frame& frame, ByteWriter& out) {
  out.U8(frame.model.low_bit ? kFlagLowBit : 0);
  if (frame.encoding == Encoding::kDelta) out.Varint(frame.model.exponent_low);
  out.U8(static_cast<uint8_t>(frame.model.contexts.size()));
  const unsigned raw_count_bits = RawCountBits(frame.coded_dtype);
  BitWriter bits;
  for (const RansContext& context : frame.model.contexts) {
    bits.Put(static_cast<uint32_t>(context.size()), SymbolCountBits(frame.encoding));
    for (size_t s = 0; s < context.size(); ++s) {
      bits.Put(context[s].raw_bits, raw_count_bits);
      if (s + 1 < context.size()) bits.Put(context[s].freq, kProbBits);
    }
  }
  out.Append(bits.Release());
}

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

void PrepareTables(Frame& frame) {
  if (IsEntropyCoded(frame.encoding)) {
    frame.tables = std::make_shared<const DecodeTables>(
        BuildDecodeTables(frame.model, frame.encoding == Encoding::kDelta, frame.coded_dtype));
  }
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
  if (!IsComputed(frame.encoding)) out.U8(static_cast<uint8_t>(frame.coded_dtype));
  out.Varint(frame.elems);
  out.Varint(frame.block_elems);
  if (frame.encoding == Encoding::kCompact) SerializeCompact(*frame.compact, out);
  if (frame.encoding == Encoding::kProjected) {
    out.Varint(frame.projection->columns);
    out.Varint(frame.projection->depth);
    out.U8(frame.projection->has_norm ? 1 : 0);
  }
  if (IsEntropyCoded(frame.encoding)) SerializeModel(frame, out);
  return out.Release();
}

namespace {

Status ParseProjection(ByteReader& in, Frame* frame) {
  Projection projection;
  projection.columns = in.Varint();
  projection.depth = in.Varint();
  const uint8_t flags = in.U8();
  if (!in.ok() || !in.AtEnd()) return Corruption("frame: a projection cut short, or bytes after its end");
  if (flags > 1) return Unsupported("frame: a projection with flags " + std::to_string(flags));
  projection.has_norm = flags != 0;
  const DType dtype = frame->dtype;
  if (!IsProjectable(dtype)) return Corruption("frame: a projected tensor of dtype " + std::string(DTypeName(dtype)));
  const uint64_t columns = projection.columns, depth = projection.depth;
  if (columns == 0 || depth == 0 || columns > kMaxAxesElems || depth > kMaxAxesElems / columns ||
      frame->elems % columns != 0 || frame->elems == 0 ||
      frame->elems / columns > std::numeric_limits<uint64_t>::max() / 16 / depth)
    return Corruption("frame: " + std::to_string(frame->elems) + " elements projected from " + std::to_string(depth) +
                      " to " + std::to_string(columns));
  frame->projection = projection;
  return OkStatus();
}

}  // namespace

Result<Frame> ParseFrame(ByteSpan bytes) {
  ByteReader in(bytes);
  Frame frame;
  const uint8_t encoding = in.U8();
  const uint8_t dtype = in.U8();
  const uint8_t coded_dtype = IsComputed(static_cast<Encoding>(encoding)) ? dtype : in.U8();
  frame.elems = in.Varint();
  const uint64_t block_elems = in.Varint();
  if (!in.ok()) return Corruption("frame: cut short after " + std::to_string(bytes.size()) + " bytes");
  if (encoding > static_cast<uint8_t>(Encoding::kProjected))
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
  if (frame.encoding == Encoding::kCompact) {
    if (!DTypeIsFloat(frame.dtype))
      return Corruption("frame: a compact tensor of dtype " + std::string(DTypeName(frame.dtype)));
    ASSIGN_OR_RETURN(CompactFrame compact, ParseCompact(in, frame.elems));
    if (!in.AtEnd()) return Corruption("frame: bytes after its end");
    frame.compact = std::make_shared<const CompactFrame>(std::move(compact));
    return frame;
  }
  if (frame.encoding == Encoding::kProjected) {
    RETURN_IF_ERROR(ParseProjection(in, &frame));
    return frame;
  }
  if (!IsEntropyCoded(frame.encoding)) {
    if (frame.coded_dtype != frame.dtype) return Corruption("frame: a plain frame with a coded dtype of its own");
    if (!in.AtEnd()) return Corruption("frame: bytes after its end");
    return frame;
  }
  const bool narrowed = frame.dtype == DType::kF32 && frame.coded_dtype == DType::kBF16;
  const bool tokens = frame.dtype == DType::kU16 && frame.encoding == Encoding::kSelf;
  if ((!DTypeIsFloat(frame.coded_dtype) && !tokens) || (frame.coded_dtype != frame.dtype && !narrowed))
    return Corruption("frame: dtype " + std::string(DTypeName(frame.dtype)) + " coded as " +
                      std::string(DTypeName(frame.coded_dtype)));
  RETURN_IF_ERROR(ParseModel(in, frame));
  PrepareTables(frame);
  return frame;
}

}  // namespace modelstore
