#include "codec/decode/block_decoder.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "codec/kernels/convert.h"
#include "codec/kernels/rans_decode.h"
#include "codec/support/zstd_memory.h"

namespace modelstore {
namespace {

Status BadBlock(uint32_t index, std::string_view what) {
  return Corruption("block " + std::to_string(index) + ": " + std::string(what));
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
  if (IsComputed(frame.encoding)) return BadBlock(index, "a computed tensor has no coded blocks");
  if (coded.size() == out.size()) {
    if (!out.empty()) std::memcpy(out.data(), coded.data(), out.size());
    return OkStatus();
  }
  if (coded.size() > out.size()) return BadBlock(index, "coded larger than raw");
  const uint32_t elems = frame.BlockElems(index);
  switch (frame.encoding) {
    case Encoding::kRaw:
      return BadBlock(index,
                      "raw, but " + std::to_string(coded.size()) + " bytes instead of " + std::to_string(out.size()));
    case Encoding::kZstd: {
      const size_t n = ZSTD_decompress(out.data(), out.size(), coded.data(), coded.size());
      ThrowIfOutOfMemory(n);
      if (ZSTD_isError(n)) return BadBlock(index, std::string("zstd: ") + ZSTD_getErrorName(n));
      if (n != out.size()) return BadBlock(index, "zstd frame of another size");
      return OkStatus();
    }
    case Encoding::kSelf:
    case Encoding::kDelta:
    case Encoding::kCompact:
    case Encoding::kProjected:
      break;
  }
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

}  // namespace modelstore
