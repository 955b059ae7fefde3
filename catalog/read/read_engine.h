// ReadEngine: (file, offset, length) -> bytes (layer: catalog/read; never sees catalog/write).
//
// Thread-safe, any number of readers. Decoded blocks live in one cache; a block that many readers want is decoded once
// (single flight) and no lock is held while anything is decoded or read from the store. Cached blocks, free slots for
// blocks, blocks being decoded with their predictions and coded bytes, and the parsed tensors that are kept count
// against one hard budget; records of open files, parsed tensors that callers hold and the decoders' tables (128 KiB a
// thread) do not. Opened files and tensors are immutable snapshots: they stay readable while the object lives, whatever
// is removed from the catalog, until prune collects; prune asks PinnedTensors() what must stay.
//
// The engine is the door to its parts, which its callers do not see: FileTable and TensorTable (what is open),
// PartReader (a range as parts of blocks), BlockSource (one block: cache, single flight, decode) over ViewReader (what
// predicts a block), and Prefetcher. Exceptions end here: whatever returns a Status or a Result works in Guarded.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "catalog/read/batch_decoder.h"
#include "catalog/read/block_ref.h"
#include "catalog/read/open_file.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/worker_pool.h"
#include "catalog/schema/records.h"
#include "catalog/store/kv_store.h"
#include "codec/support/mutex.h"

namespace modelstore {

struct ReadOptions {
  uint64_t memory_budget_bytes = 1ull << 30;  // at least kMinReadBudgetBytes
  uint64_t prefetch_bytes = 8ull << 20;       // ahead of a sequential reader; 0: none
};
inline constexpr uint64_t kMinReadBudgetBytes = 16ull << 20;

struct ReadStats {
  uint64_t cache_bytes = 0, cache_capacity_bytes = 0, peak_bytes = 0;
  uint64_t hits = 0, misses = 0, waits = 0;  // waits: joined somebody else's decode
  uint64_t decoded_blocks = 0, decoded_bytes = 0, prefetched_blocks = 0;
};

class ReadEngine {
 public:
  // `store` and `pool` outlive the engine.
  ReadEngine(const KvReader& store, WorkerPool& pool, const ReadOptions& options);
  ~ReadEngine();  // waits for prefetches under way

  // Errors: NotFound, Corruption, Unsupported, Io.
  Result<FileRef> OpenFileByHash(const Sha256Digest& sha256);
  // Call when the file's record was replaced by one of the same bytes (a push mended it): whoever opens it from now on
  // reads by the new record; those who have it open keep, and pin, what they have.
  void ForgetFile(const Sha256Digest& sha256);
  // Call when the tensor's record was replaced by one of the same content: it is read again.
  void ForgetTensor(const TensorId& id);
  Result<TensorRef> OpenTensorById(const TensorId& id);
  // A tensor that was written but is not published, from its record, checked like those of the store. `id` need not be
  // its own before it is introduced. Errors: Corruption, Unsupported, Io.
  Result<TensorRef> OpenUnpublished(const TensorId& id, TensorRecord record);
  // Makes it known to OpenTensorById and to what names it as its base, until it is withdrawn: for the push that wrote
  // it. Another push may introduce the same content: the last one is found.
  void Introduce(TensorRef tensor);
  void Withdraw(const TensorRef& tensor);

  // Copies up to out.size() bytes from `offset`; fewer only at the end of the file. Errors: Corruption, Io: `out` is
  // then undefined and no byte of it may be used.
  Result<size_t> Read(const FileRef& file, uint64_t offset, MutableByteSpan out);
  // Read without a copy where possible. `pieces` make the bytes, in order: they are in decoded blocks that they keep
  // (let go of them soon, and wait for nothing of the engine's meanwhile), in `file`, or in `scratch`, which has as
  // many bytes as are wanted. `passing`: the reader keeps what it was given, so a block of which it was given all is
  // forgotten unless it predicts others.
  Result<size_t> ReadPieces(const FileRef& file, uint64_t offset, MutableByteSpan scratch, bool passing,
                            std::vector<BlockRef>* pieces);
  // The decoded block of a tensor, from the cache or decoded now and left there. keep = false: always decoded from the
  // store's own bytes, and not cached (checking what is stored); its base may come from the cache. `tensor` need not be
  // published. Errors: Corruption, Io, ResourceExhausted (a block larger than the budget allows).
  Result<BlockRef> ReadBlock(const TensorRef& tensor, uint32_t index, bool keep = true);
  // Bytes [offset, offset + out.size()) of a tensor.
  Status ReadTensor(const TensorRef& tensor, uint64_t offset_bytes, MutableByteSpan out);
  // Elements [begin, begin + elems) of `view` converted to `coded_dtype`: a delta's prediction. Used by decoding and by
  // push, so that both see the same bits.
  Status ReadPrediction(const std::vector<ViewSegment>& view, DType coded_dtype, uint64_t begin_elems,
                        MutableByteSpan out);
  // Decodes the file's blocks of [offset, offset + bytes) into the cache, in the background.
  void Prefetch(const FileRef& file, uint64_t offset, uint64_t bytes);

  // Reads ahead with it from now on. Call before anybody reads.
  void SetBatchDecoder(std::shared_ptr<BatchDecoder> decoder);

  // Tensors reachable from files that are open now (with their bases).
  std::vector<TensorId> PinnedTensors() const;
  // While it is held exclusively no file is opened that is not open already. Prune holds it from asking PinnedTensors()
  // until the records of the files that it removes are gone, so that none of them is opened in between.
  SharedMutex& opens_mutex() const;
  ReadStats stats() const;
  // Forgets cached blocks and parsed tensors (tests, benchmarks, after prune).
  void DropCaches();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
