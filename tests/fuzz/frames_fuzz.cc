// A frame and one block of it, both hostile: a varint length, the frame, then the coded block. Decodes on every CPU
// target and by a GPU's kernels on the host, and checks that all agree.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "codec/decode/block_decoder.h"
#include "codec/device/host_device.h"
#include "codec/kernels/cpu_target.h"

namespace modelstore {
namespace {

void Run(ByteSpan data) {
  ByteReader in(data);
  const ByteSpan frame_bytes = in.LengthPrefixed();
  const ByteSpan coded = in.Take(in.remaining());
  const Result<Frame> frame = ParseFrame(frame_bytes);
  if (!frame.ok()) return;
  const Result<Frame> again = ParseFrame(SerializeFrame(*frame));
  if (!again.ok() || again->elems != frame->elems) std::abort();
  if (frame->BlockCount() == 0 || BlockBytes(*frame, 0) > 1u << 20) return;
  const uint32_t elems = frame->BlockElems(0);
  Bytes prediction(frame->encoding == Encoding::kDelta ? size_t{elems} * DTypeBytes(frame->coded_dtype) : 0);
  for (size_t i = 0; i < prediction.size(); ++i) prediction[i] = static_cast<std::byte>(i * 131 >> 3);
  Bytes first;
  bool first_ok = false;
  for (const CpuTarget target : AvailableCpuTargets()) {
    ForceCpuTarget(target);
    Bytes out(BlockBytes(*frame, 0));
    const bool ok = DecodeBlock(*frame, 0, coded, prediction, out).ok();
    if (target == CpuTarget::kBaseline) {
      first_ok = ok;
      first = out;
    } else if (ok != first_ok || (ok && out != first)) {
      std::abort();
    }
  }
  const bool has_streams = frame->encoding == Encoding::kSelf || frame->encoding == Encoding::kDelta;
  if (!has_streams || coded.size() >= BlockBytes(*frame, 0)) return;
  HostBatch batch(4 << 20);
  BatchBuilder& builder = batch.builder();
  const auto block = builder.AddBlock(*frame, 0, coded, {.bytes = prediction}, /*is_wanted=*/true);
  if (!block.ok()) {
    if (first_ok) std::abort();
    return;
  }
  if (!*block) std::abort();
  batch.Run();
  if (builder.Succeeded(**block, batch.output()) != first_ok) std::abort();
  if (first_ok && !std::ranges::equal(builder.BytesOf(**block, batch.output()), first)) std::abort();
}

}  // namespace
}  // namespace modelstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  modelstore::Run(std::as_bytes(std::span(data, size)));
  return 0;
}
