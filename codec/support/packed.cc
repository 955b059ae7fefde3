#include "codec/support/packed.h"

#include <zstd.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "codec/support/zstd_memory.h"

namespace modelstore {
namespace {

// Level 19 gives bodies of some 10 KiB in milliseconds; of large ones it would take seconds.
constexpr size_t kThoroughBytes = 1 << 20;
constexpr int kThoroughLevel = 19, kQuickLevel = 9;
constexpr uint64_t kMaxRatio = 4096;

}  // namespace

void AppendPacked(ByteSpan bytes, ByteWriter& out) {
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  Bytes frame(ZSTD_compressBound(bytes.size()));
  size_t n = 0;
  if (context != nullptr) {
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel,
                           bytes.size() <= kThoroughBytes ? kThoroughLevel : kQuickLevel);
    ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
    n = ZSTD_compress2(context.get(), frame.data(), frame.size(), bytes.data(), bytes.size());
  }
  // With room for the worst case only memory can be missing.
  if (context == nullptr || ZSTD_isError(n)) throw std::bad_alloc();
  out.Varint(bytes.size());
  out.Append(ByteSpan(frame).first(n));
}

Result<Bytes> TakePacked(ByteReader& in) {
  const uint64_t bytes = in.Varint();
  const ByteSpan frame = in.Take(in.remaining());
  if (!in.ok()) return Corruption("its packed body is cut short");
  const uint64_t sane = std::max<uint64_t>(kMaxAmplifiedBytes, kMaxRatio * frame.size());
  if (bytes > kMaxUnpackedBytes || bytes > sane)
    return Corruption("its packed body of " + std::to_string(frame.size()) + " bytes says that it holds " +
                      std::to_string(bytes));
  // One frame: zstd itself would go on to the next.
  if (const size_t n = ZSTD_findFrameCompressedSize(frame.data(), frame.size()); ZSTD_isError(n) || n != frame.size())
    return Corruption("its packed body is not one zstd frame");
  Bytes out(bytes);
  const size_t n = ZSTD_decompress(out.data(), out.size(), frame.data(), frame.size());
  ThrowIfOutOfMemory(n);
  if (ZSTD_isError(n)) return Corruption(std::string("its packed body: zstd: ") + ZSTD_getErrorName(n));
  if (n != bytes)
    return Corruption("its packed body holds " + std::to_string(n) + " bytes, not " + std::to_string(bytes));
  return out;
}

}  // namespace modelstore
