// HostBatch: a batch that the CPU runs by the kernels for GPUs (layer: codec/device): for tests and fuzzing.
#pragma once

#include <memory>

#include "codec/device/batch_builder.h"

namespace modelstore {

class HostBatch {
 public:
  // Of each space.
  explicit HostBatch(uint64_t bytes);
  ~HostBatch();
  BatchBuilder& builder() { return builder_; }
  // Completes the program and runs it.
  void Run();
  ByteSpan output() const { return {memory_.output.get(), memory_.bytes}; }

 private:
  using Memory = std::unique_ptr<std::byte[]>;  // not cleared
  // One batch after the other uses the same memory: fuzzing makes thousands.
  struct Spare {
    uint64_t bytes = 0;
    Memory input, output, scratch;
  };
  static Spare& SpareOfThread();
  static Spare Take(uint64_t bytes);

  Spare memory_;
  BatchBuilder builder_;
};

}  // namespace modelstore
