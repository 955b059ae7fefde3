// TensorWriter: one push's blocks, from source bytes into the store and back (layer: catalog/write; private).
//
// Thread-safe; both calls spread a large tensor over the pool. Blocks are written without the log: they are durable
// only after the push flushed them, and nothing refers to them before it is published.
#pragma once

#include <atomic>

#include "catalog/read/catalog.h"
#include "catalog/write/base_choice.h"
#include "catalog/write/tensor_data.h"
#include "codec/support/job_control.h"

namespace modelstore {

class TensorWriter {
 public:
  TensorWriter(Catalog& catalog, PushId push, JobControl& job) : catalog_(catalog), push_(push), job_(job) {}

  // Codes `data` by `choice` and writes its blocks from `first_block` on. hold_bytes: what a delta's prediction may
  // take in memory; a larger one is made again for each pass. Errors: Io (source changed), NoSpace, Cancelled,
  // Corruption (of the base).
  Result<TensorRecord> Store(const TensorData& data, const BaseChoice& choice, uint32_t first_block,
                             uint64_t hold_bytes);
  // Decodes a stored tensor from the store's own bytes; its hash. Errors: Corruption, Io.
  Result<Hash128> HashStored(const TensorRecord& record);

  // Keys and values of the blocks written so far.
  uint64_t written_bytes() const { return written_bytes_.load(); }

 private:
  class Prediction;
  Status WriteBlocks(const TensorData& data, const BlockEncoder& encoder, const Prediction& prediction,
                     TensorRecord* record);

  Catalog& catalog_;
  const PushId push_;
  JobControl& job_;
  BufferPool buffers_;
  std::atomic<uint64_t> written_bytes_{0};
};

// Blocks that a tensor of so many bytes can have at most.
inline uint64_t BlocksFor(uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }

}  // namespace modelstore
