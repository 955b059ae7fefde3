// Runs a DeviceProgram on the CPU, warp after warp, by the source that GPUs run (layer: codec/device): for tests and
// for `modelstore doctor`. Slow. Thread-safe.
#pragma once

#include <memory>

#include "codec/device/batch_builder.h"
#include "codec/support/bytes.h"

namespace modelstore {

// kDeviceConstantBytes that every device holds.
Bytes DeviceConstants();

// A batch that runs so, in memory of its own.
class HostBatch {
 public:
  // Of each space.
  explicit HostBatch(uint64_t bytes);
  BatchBuilder& builder() { return builder_; }
  // Completes the program and runs it.
  void Run();
  ByteSpan output() const { return {output_.get(), bytes_}; }

 private:
  using Memory = std::unique_ptr<std::byte[]>;  // not cleared
  const uint64_t bytes_;
  Memory input_, output_, scratch_;
  BatchBuilder builder_;
};

// `input`: the program and what it refers to; `output` and `scratch`: as many bytes as it says, 16-byte aligned.
void RunOnHost(MutableByteSpan input, MutableByteSpan output, MutableByteSpan scratch);

}  // namespace modelstore
