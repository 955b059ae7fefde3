// HostBatch: a batch that the CPU runs by the kernels for GPUs (layer: codec/device): for tests and fuzzing.
#pragma once

#include <memory>

#include "codec/device/batch_builder.h"

namespace modelstore {

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

}  // namespace modelstore
