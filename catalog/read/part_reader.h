// PartReader: a range of a file or of a tensor as parts, each of which lies in one decoded block or in the file's
// record (layer: catalog/read; private).
//
// Thread-safe; what is missing in the cache is decoded on the pool, in parallel. A read needs no copy: its parts hold
// the blocks that they point into. Nobody waits for memory while holding blocks, so when there is no memory for all
// parts of a read at once, each is copied to where the reader has room for it before the next one is decoded.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "catalog/read/block_cache.h"
#include "catalog/read/block_source.h"
#include "catalog/read/file_table.h"
#include "catalog/read/open_file.h"
#include "catalog/read/open_tensor.h"
#include "catalog/read/worker_pool.h"

namespace modelstore {

struct Part {
  MutableByteSpan out;  // where the reader has room for the part
  ByteSpan bytes;       // where the part is; empty: not yet known
  BlockPtr block;       // holds `bytes`; null when they are in the record or copied
  BlockId id;           // of the block; push 0: the part is of the record
  TensorRef tensor;     // to decode the block; null when the block was cached, and for a part of the record
  uint32_t index = 0;   // of the block within the tensor
  size_t begin = 0;     // within the block

  void TakeFrom(BlockPtr from) {
    bytes = from->bytes().subspan(begin, out.size());
    block = std::move(from);
  }
  void Copy() {
    if (bytes.data() != out.data()) std::memcpy(out.data(), bytes.data(), out.size());
    bytes = out;
    block = nullptr;
  }
};

class PartReader {
 public:
  // All outlive the object.
  PartReader(WorkerPool& pool, BlockCache& cache, FileTable& files, BlockSource& blocks)
      : pool_(pool), cache_(cache), files_(files), blocks_(blocks) {}

  // The parts from `offset` on, in order, together as many bytes as `out` has, fewer only at the end of the file.
  // Errors: Corruption, Io, ResourceExhausted; `out` is then undefined.
  Result<std::vector<Part>> OfFile(const FileRef& file, uint64_t offset, MutableByteSpan out);
  // The same of a tensor, which has all of [offset, offset + out.size()).
  Result<std::vector<Part>> OfTensor(const TensorRef& tensor, uint64_t offset, MutableByteSpan out);

 private:
  // Lists the parts of [offset, offset + out.size()) of a tensor, with their blocks where those are cached.
  // resolve() -> Result<TensorRef> gives the tensor where one is not.
  template <typename ResolveFn>
  Status Find(const Geometry& geometry, uint64_t offset, MutableByteSpan out, const ResolveFn& resolve,
              std::vector<Part>* parts);
  // Gives every part its bytes.
  Status Fill(std::vector<Part>& parts);

  WorkerPool& pool_;
  BlockCache& cache_;
  FileTable& files_;
  BlockSource& blocks_;
};

}  // namespace modelstore
