// The encodings self and delta: elements in coder B's streams, by a model in the frame; a delta's elements as they
// differ from a prediction. docs/format.md, "Blocks: coder B".
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "codec/decode/block_decoder.h"
#include "codec/decode/encoding_rows.h"
#include "codec/kernels/rans_decode.h"

namespace modelstore {
namespace {

constexpr uint8_t kFlagLowBit = 1;

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

Status ParseEntropyCoded(ByteReader& in, Frame& frame) {
  const bool narrowed = frame.dtype == DType::kF32 && frame.coded_dtype == DType::kBF16;
  const bool tokens = frame.dtype == DType::kU16 && frame.encoding == Encoding::kSelf;
  if ((!DTypeIsFloat(frame.coded_dtype) && !tokens) || (frame.coded_dtype != frame.dtype && !narrowed))
    return Corruption("frame: dtype " + std::string(DTypeName(frame.dtype)) + " coded as " +
                      std::string(DTypeName(frame.coded_dtype)));
  RETURN_IF_ERROR(ParseModel(in, frame));
  PrepareTables(frame);
  return OkStatus();
}

// Decodes an entropy-coded block into patterns of the coded dtype.
Status DecodePatterns(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction, std::byte* out) {
  const uint32_t width = DTypeBytes(frame.coded_dtype);
  const bool delta = frame.encoding == Encoding::kDelta;
  ASSIGN_OR_RETURN(const CodedStreams block, SplitBlock(frame, index, coded));
  std::array<uint8_t, kMaxBlockElems / kSelfChunkElems> classes;
  if (!delta) {
    const uint32_t chunks = (frame.BlockElems(index) + kSelfChunkElems - 1) / kSelfChunkElems;
    for (uint32_t c = 0; c < chunks; ++c) classes[c] = ClassOf(block.class_map, c);
  }
  DecodeJob jobs[2];
  size_t at = 0;
  for (unsigned j = 0; j < block.count; ++j) {
    const CodedStreams::Stream& stream = block.streams[j];
    std::memcpy(jobs[j].state, stream.states.data(), sizeof(jobs[j].state));
    jobs[j].next = stream.words.data();
    jobs[j].end = stream.words.data() + stream.words.size();
    jobs[j].elems = stream.elems;
    if (delta) jobs[j].prediction = prediction.data() + at * width;
    jobs[j].classes = classes.data() + at / kSelfChunkElems;
    jobs[j].out = out + at * width;
    at += jobs[j].elems;
  }
  if (!DecodeStreams(*frame.tables, jobs, block.count))
    return BadBlock(index, delta ? "it does not decode against this base" : "it does not decode");
  return OkStatus();
}

Status DecodeEntropyCoded(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction,
                          MutableByteSpan out) {
  const uint32_t elems = frame.BlockElems(index);
  if (frame.encoding == Encoding::kDelta && prediction.size() != size_t{elems} * DTypeBytes(frame.coded_dtype))
    return Internal("DecodeBlock: prediction of " + std::to_string(prediction.size()) + " bytes");
  if (frame.coded_dtype == frame.dtype) return DecodePatterns(frame, index, coded, prediction, out.data());
  // F32 coded as BF16: decode into the buffer's second half, then widen from the front; the write position of element i
  // (4i) never passes the read position of a later one (2n + 2j, j > i).
  std::byte* const narrow = out.data() + size_t{elems} * 2;
  RETURN_IF_ERROR(DecodePatterns(frame, index, coded, prediction, narrow));
  for (size_t i = 0; i < elems; ++i) {
    uint16_t pattern;
    std::memcpy(&pattern, narrow + i * 2, 2);
    const uint32_t wide = uint32_t{pattern} << 16;
    std::memcpy(out.data() + i * 4, &wide, 4);
  }
  return OkStatus();
}

std::vector<InputNeed> DeltaInputs(const Frame& frame) {
  return {{.role = InputRole::kBase, .elems = frame.elems, .dtype = frame.coded_dtype, .is_converted = true}};
}

// The coded block is held while the bases' blocks are decoded, one after the other, into the prediction; a base's block
// that holds the whole prediction is that itself.
uint64_t DeltaPeakBytes(const Frame&, const BlockNeed& own, std::span<const SeenNeed> seen) {
  uint64_t rest = own.prediction + own.block;
  for (const SeenNeed& base : seen) rest = std::max({rest, own.prediction + base.peak, base.block + own.block});
  return own.stored + rest;
}

}  // namespace

Result<CodedStreams> SplitBlock(const Frame& frame, uint32_t index, ByteSpan coded) {
  const uint32_t elems = frame.BlockElems(index);
  CodedStreams block;
  ByteReader in(coded);
  if (frame.encoding == Encoding::kSelf && frame.model.contexts.size() > 1) {
    const uint32_t chunks = (elems + kSelfChunkElems - 1) / kSelfChunkElems;
    block.class_map = in.Take((chunks + 3) / 4);
    if (!in.ok()) return BadBlock(index, "its class map is cut short");
  }
  const auto start = [&](ByteSpan bytes, CodedStreams::Stream* stream) {
    constexpr size_t kStateBytes = kLanes * sizeof(uint32_t);
    if (bytes.size() < kStateBytes || bytes.size() % 2 != 0) return false;
    stream->states = bytes.first(kStateBytes);
    stream->words = bytes.subspan(kStateBytes);
    return true;
  };
  block.streams[0].elems = FirstStreamElems(elems);
  if (block.streams[0].elems < elems) {
    block.count = 2;
    block.streams[1].elems = elems - block.streams[0].elems;
    const uint32_t first_bytes = in.U32();
    if (!start(in.Take(first_bytes), &block.streams[0])) return BadBlock(index, "its first stream is cut short");
  }
  if (!start(in.Take(in.remaining()), &block.streams[block.count - 1]))
    return BadBlock(index, "its stream is cut short");
  return block;
}

void PrepareTables(Frame& frame) {
  if (frame.encoding != Encoding::kSelf && frame.encoding != Encoding::kDelta) return;
  frame.tables = std::make_shared<const DecodeTables>(
      BuildDecodeTables(frame.model, frame.encoding == Encoding::kDelta, frame.coded_dtype));
}

const EncodingRow kSelfRow = {.encoding = Encoding::kSelf,
                              .parse = ParseEntropyCoded,
                              .serialize = SerializeModel,
                              .decode = DecodeEntropyCoded,
                              .rebuild = nullptr,
                              .inputs = NoInputs,
                              .peak_bytes = CodedAndDecodedBytes};

const EncodingRow kDeltaRow = {.encoding = Encoding::kDelta,
                               .parse = ParseEntropyCoded,
                               .serialize = SerializeModel,
                               .decode = DecodeEntropyCoded,
                               .rebuild = nullptr,
                               .inputs = DeltaInputs,
                               .peak_bytes = DeltaPeakBytes};

}  // namespace modelstore
