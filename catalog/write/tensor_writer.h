// TensorWriter: one push's blocks, from source bytes into the store and back (layer: catalog/write; private).
//
// Thread-safe; both calls spread a large tensor over the lanes of the push. Blocks are written without the log: they
// are durable only after the push flushed them, and nothing refers to them before it is published.
#pragma once

#include <atomic>

#include "catalog/read/catalog.h"
#include "catalog/write/base_choice.h"
#include "catalog/write/parallel.h"
#include "catalog/write/tensor_data.h"
#include "codec/support/job_control.h"

namespace modelstore {

class TensorWriter {
 public:
  // hold_bytes: what a delta's prediction may take in memory; a larger one is made again for each pass. `lanes` and
  // `job` outlive this object.
  TensorWriter(Catalog& catalog, PushId push, Lanes& lanes, uint64_t hold_bytes, JobControl& job)
      : catalog_(catalog), push_(push), lanes_(lanes), hold_bytes_(hold_bytes), job_(job) {}

  // Codes `data` by `choice` and writes its blocks from `first_block` on. `part`: to be told of source bytes as they
  // are coded; may be null. Errors: Io (source changed), NoSpace, Cancelled, Corruption (of the base).
  Result<TensorRecord> Store(const TensorData& data, const BaseChoice& choice, uint32_t first_block, JobPart* part);
  // Decodes a stored tensor from the store's own bytes; its hash. Errors: Corruption, Io.
  Result<Hash128> HashStored(const TensorRecord& record);

  // Gives memory back that is kept for the next tensor.
  void ReleaseBuffers() { holds_.Clear(); }

  // Keys and values of the blocks written so far.
  uint64_t written_bytes() const { return written_bytes_.load(); }

 private:
  class Prediction;
  Status WriteBlocks(const TensorData& data, const BlockEncoder& encoder, const Prediction& prediction, JobPart* part,
                     TensorRecord* record);

  Catalog& catalog_;
  const PushId push_;
  Lanes& lanes_;
  const uint64_t hold_bytes_;
  JobControl& job_;
  BufferPool holds_;  // predictions, windows of HashStored
  BufferPool scratches_;
  std::atomic<uint64_t> written_bytes_{0};
};

// Blocks that a tensor of so many bytes can have at most.
inline uint64_t BlocksFor(uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }

}  // namespace modelstore
