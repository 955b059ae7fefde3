#include "codec/decode/block_decoder.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "codec/kernels/convert.h"
#include "codec/kernels/rans_decode.h"

namespace modelstore {
namespace {

Status BadBlock(uint32_t index, std::string_view what) {
  return Corruption("block " + std::to_string(index) + ": " + std::string(what));
}

// The stream's 32 states and words: the whole of `bytes`.
bool StartStream(ByteSpan bytes, DecodeJob& job) {
  if (bytes.size() < sizeof(job.state) || bytes.size() % 2 != 0) return false;
  std::memcpy(job.state, bytes.data(), sizeof(job.state));
  job.next = bytes.data() + sizeof(job.state);
  job.end = bytes.data() + bytes.size();
  return true;
}

// Decodes an entropy-coded block into patterns of the coded dtype.
Status DecodePatterns(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction, std::byte* out) {
  const uint32_t elems = frame.BlockElems(index);
  const uint32_t width = DTypeBytes(frame.coded_dtype);
  const bool delta = frame.encoding == Encoding::kDelta;
  ByteReader in(coded);

  std::array<uint8_t, kMaxBlockElems / kSelfChunkElems> classes;
  if (!delta && frame.model.contexts.size() <= 1) {
    std::fill_n(classes.begin(), (elems + kSelfChunkElems - 1) / kSelfChunkElems, uint8_t{0});
  } else if (!delta) {
    const uint32_t chunks = (elems + kSelfChunkElems - 1) / kSelfChunkElems;
    const ByteSpan map = in.Take((chunks + 3) / 4);
    if (!in.ok()) return BadBlock(index, "its class map is cut short");
    for (uint32_t c = 0; c < chunks; ++c) classes[c] = (std::to_integer<uint8_t>(map[c / 4]) >> (c % 4 * 2)) & 3;
  }
  DecodeJob jobs[2];
  unsigned job_count = 1;
  jobs[0].elems = FirstStreamElems(elems);
  if (jobs[0].elems < elems) {
    job_count = 2;
    jobs[1].elems = elems - jobs[0].elems;
    const uint32_t first_bytes = in.U32();
    if (!StartStream(in.Take(first_bytes), jobs[0])) return BadBlock(index, "its first stream is cut short");
  }
  if (!StartStream(in.Take(in.remaining()), jobs[job_count - 1])) return BadBlock(index, "its stream is cut short");
  size_t at = 0;
  for (unsigned j = 0; j < job_count; ++j) {
    if (delta) jobs[j].prediction = prediction.data() + at * width;
    jobs[j].classes = classes.data() + at / kSelfChunkElems;
    jobs[j].out = out + at * width;
    at += jobs[j].elems;
  }
  if (!DecodeStreams(*frame.tables, jobs, job_count))
    return BadBlock(index, delta ? "it does not decode against this base" : "it does not decode");
  return OkStatus();
}

}  // namespace

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
