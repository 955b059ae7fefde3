// The encodings raw and zstd: bytes, whatever their elements are.
#include <zstd.h>

#include <string>

#include "codec/decode/encoding_rows.h"
#include "codec/support/zstd_memory.h"

namespace modelstore {
namespace {

Status ParseNothing(ByteReader& in, Frame& frame) {
  if (frame.coded_dtype != frame.dtype) return Corruption("frame: a plain frame with a coded dtype of its own");
  return in.AtEnd() ? OkStatus() : Corruption("frame: bytes after its end");
}

void SerializeNothing(const Frame&, ByteWriter&) {}

Status DecodeRaw(const Frame&, uint32_t index, ByteSpan coded, ByteSpan, MutableByteSpan out) {
  return BadBlock(index,
                  "raw, but " + std::to_string(coded.size()) + " bytes instead of " + std::to_string(out.size()));
}

Status DecodeZstd(const Frame&, uint32_t index, ByteSpan coded, ByteSpan, MutableByteSpan out) {
  const size_t n = ZSTD_decompress(out.data(), out.size(), coded.data(), coded.size());
  ThrowIfOutOfMemory(n);
  if (ZSTD_isError(n)) return BadBlock(index, std::string("zstd: ") + ZSTD_getErrorName(n));
  if (n != out.size()) return BadBlock(index, "zstd frame of another size");
  return OkStatus();
}

}  // namespace

std::vector<InputNeed> NoInputs(const Frame&) { return {}; }

uint64_t CodedAndDecodedBytes(const Frame&, const BlockNeed& own, std::span<const SeenNeed>) {
  return own.stored + own.block;
}

const EncodingRow kRawRow = {.encoding = Encoding::kRaw,
                             .parse = ParseNothing,
                             .serialize = SerializeNothing,
                             .decode = DecodeRaw,
                             .rebuild = nullptr,
                             .inputs = NoInputs,
                             .peak_bytes = CodedAndDecodedBytes};

const EncodingRow kZstdRow = {.encoding = Encoding::kZstd,
                              .parse = ParseNothing,
                              .serialize = SerializeNothing,
                              .decode = DecodeZstd,
                              .rebuild = nullptr,
                              .inputs = NoInputs,
                              .peak_bytes = CodedAndDecodedBytes};

}  // namespace modelstore
