// Prefetcher: decodes blocks ahead of sequential readers into the cache, on the pool or in batches on a device (layer:
// catalog/read; private).
//
// Thread-safe. Reading ahead never waits for memory and takes none that a reader needs (BlockCache::TryReserve); what
// does not fit the queue is dropped. Its failures are not reported: a reader that asks for the same bytes meets the
// failure itself.
//
// Nobody waits for what a device decodes: a reader that comes earlier decodes for itself. So no flight and no
// reservation is held while the device runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "catalog/read/batch_decoder.h"
#include "catalog/read/batch_reader.h"
#include "catalog/read/block_cache.h"
#include "catalog/read/block_source.h"
#include "catalog/read/file_table.h"
#include "catalog/read/open_file.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/view_reader.h"
#include "catalog/read/worker_pool.h"
#include "codec/support/mutex.h"

namespace modelstore {

class Prefetcher {
 public:
  // All outlive the object. `ahead_bytes`: how far ahead of a reader; 0: not at all.
  Prefetcher(WorkerPool& pool, BlockCache& cache, const ViewReader& views, FileTable& files, BlockSource& blocks,
             uint64_t ahead_bytes)
      : pool_(pool), cache_(cache), views_(views), files_(files), blocks_(blocks), ahead_bytes_(ahead_bytes) {}
  ~Prefetcher();  // waits for prefetches under way

  // Reads ahead with the device from now on. Call before anybody reads.
  void SetDevice(std::shared_ptr<BatchDecoder> device) { device_ = std::move(device); }

  // Notes that [offset, offset + bytes) of the file is being read, and prefetches what the reader will want next.
  void NoteRead(const FileRef& file, uint64_t offset, uint64_t bytes);
  // Queues the blocks of [begin, end) of the file.
  void Prefetch(const FileRef& file, uint64_t begin, uint64_t end) { Queue(file, begin, end, false, 0); }

 private:
  class UnderWay;

  // Queues the blocks of [begin, end) in pieces of about a block, or of a batch for the device (batch_bytes = 0: none).
  // `advised`: a piece is skipped when the reader that it was advised for has passed it meanwhile.
  void Queue(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes);
  Status QueuePieces(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes);
  // Queues a block that a device leaves to the CPU. The file stays open, so that prune spares what the block needs.
  void QueueBlock(const FileRef& file, const TensorRef& tensor, uint32_t index);
  // Runs `task` some time later; false: not, as the queue is full or the prefetcher ends.
  bool Submit(std::function<void()> task);
  bool IsStopping() const MS_EXCLUDES(mutex_);

  // Calls visit(tensor, index) for the blocks of [begin, end) of the file that nobody has or decodes.
  template <typename VisitFn>
  Status ForMissingBlocks(OpenFile& file, uint64_t begin, uint64_t end, const VisitFn& visit);
  void DecodePiece(OpenFile& file, uint64_t begin, uint64_t end);
  // False: the device does nothing of the batch.
  bool DecodeBatch(const FileRef& file, uint64_t begin, uint64_t end);
  Status DecodeOnDevice(const FileRef& file, uint64_t begin, uint64_t end);
  // Takes over the blocks that the device has decoded, and checks the device where it has failed.
  void KeepBatch(BatchDecoder::Batch& batch, const BatchReader& decoded);

  WorkerPool& pool_;
  BlockCache& cache_;
  const ViewReader& views_;
  FileTable& files_;
  BlockSource& blocks_;
  const uint64_t ahead_bytes_;
  std::shared_ptr<BatchDecoder> device_;  // null: none

  mutable Mutex mutex_;
  CondVar all_done_;
  size_t under_way_ MS_GUARDED_BY(mutex_) = 0;  // submitted and not finished
  bool is_stopping_ MS_GUARDED_BY(mutex_) = false;
};

}  // namespace modelstore
