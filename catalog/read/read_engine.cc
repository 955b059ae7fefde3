#include "catalog/read/read_engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "catalog/read/block_cache.h"
#include "catalog/read/block_source.h"
#include "catalog/read/file_table.h"
#include "catalog/read/part_reader.h"
#include "catalog/read/prefetcher.h"
#include "catalog/read/tensor_table.h"
#include "catalog/read/view_reader.h"
#include "codec/support/guarded.h"

namespace modelstore {
namespace {

// Parsed tensors get this share of the budget, free slots for blocks as much and at most kMaxSpareBytes (the slots that
// readers have passed are soon taken by what is read ahead), blocks and buffers the rest.
constexpr uint64_t kTensorShare = 16, kSpareShare = 16;
constexpr uint64_t kMaxSpareBytes = 32 << 20;

uint64_t SpareBytes(uint64_t budget_bytes) { return std::min(budget_bytes / kSpareShare, kMaxSpareBytes); }

// Shorter pieces are copied: a reply of thousands of them would take longer.
constexpr size_t kMinPieceBytes = 16 << 10;

}  // namespace

// Each member knows those before it alone; the prefetcher, which waits for its tasks, goes first.
struct ReadEngine::Impl {
  Impl(const KvReader& store, WorkerPool& pool, uint64_t budget_bytes, uint64_t prefetch_bytes)
      : cache(budget_bytes - budget_bytes / kTensorShare - SpareBytes(budget_bytes), SpareBytes(budget_bytes)),
        tensors(store, budget_bytes / kTensorShare),
        views(tensors),
        blocks(store, cache, tensors, views),
        files(store, tensors),
        parts(pool, cache, files, blocks),
        prefetcher(pool, cache, views, files, blocks, prefetch_bytes) {}

  BlockCache cache;
  TensorTable tensors;
  ViewReader views;
  BlockSource blocks;
  FileTable files;
  PartReader parts;
  Prefetcher prefetcher;

  Result<std::vector<Part>> PartsOf(const FileRef& file, uint64_t offset, MutableByteSpan out) {
    prefetcher.NoteRead(file, offset, out.size());
    return parts.OfFile(file, offset, out);
  }
  Result<size_t> Read(const FileRef& file, uint64_t offset, MutableByteSpan out);
  Result<size_t> ReadPieces(const FileRef& file, uint64_t offset, MutableByteSpan scratch, bool passing,
                            std::vector<BlockRef>* pieces);
};

Result<size_t> ReadEngine::Impl::Read(const FileRef& file, uint64_t offset, MutableByteSpan out) {
  ASSIGN_OR_RETURN(std::vector<Part> read, PartsOf(file, offset, out));
  size_t bytes = 0;
  for (Part& part : read) {
    part.Copy();
    bytes += part.out.size();
  }
  return bytes;
}

Result<size_t> ReadEngine::Impl::ReadPieces(const FileRef& file, uint64_t offset, MutableByteSpan scratch, bool passing,
                                            std::vector<BlockRef>* pieces) {
  ASSIGN_OR_RETURN(std::vector<Part> read, PartsOf(file, offset, scratch));
  if (passing) {
    std::vector<BlockCache::ReadPart> passed;
    for (const Part& part : read)
      if (part.id.push != 0) passed.push_back({part.id, part.out.size()});
    cache.Pass(passed);
  }
  size_t bytes = 0;
  for (Part& part : read) {
    bytes += part.out.size();
    if (part.out.size() < kMinPieceBytes) part.Copy();
    const ByteSpan before = pieces->empty() ? ByteSpan() : pieces->back().bytes();
    if (part.block == nullptr && !before.empty() && before.data() + before.size() == part.bytes.data()) {
      pieces->back() = BlockRef(ByteSpan(before.data(), before.size() + part.bytes.size()), nullptr);
    } else {
      pieces->emplace_back(part.bytes, std::move(part.block));
    }
  }
  return bytes;
}

ReadEngine::ReadEngine(const KvReader& store, WorkerPool& pool, const ReadOptions& options)
    : impl_(std::make_unique<Impl>(store, pool, std::max(options.memory_budget_bytes, kMinReadBudgetBytes),
                                   options.prefetch_bytes)) {}

ReadEngine::~ReadEngine() = default;

Result<FileRef> ReadEngine::OpenFileByHash(const Sha256Digest& sha256) {
  return Guarded([&] { return impl_->files.Open(sha256); });
}

void ReadEngine::ForgetFile(const Sha256Digest& sha256) { impl_->files.Forget(sha256); }

void ReadEngine::ForgetTensor(const TensorId& id) { impl_->tensors.Forget(id); }

Result<TensorRef> ReadEngine::OpenTensorById(const TensorId& id) {
  return Guarded([&] { return impl_->tensors.Get(id); });
}

Result<TensorRef> ReadEngine::OpenUnpublished(const TensorId& id, TensorRecord record) {
  return Guarded([&] { return impl_->tensors.Open(id, std::move(record)); });
}

void ReadEngine::Introduce(TensorRef tensor) { impl_->tensors.Introduce(std::move(tensor)); }

void ReadEngine::Withdraw(const TensorRef& tensor) { impl_->tensors.Withdraw(tensor); }

Result<size_t> ReadEngine::Read(const FileRef& file, uint64_t offset, MutableByteSpan out) {
  return Guarded([&] { return impl_->Read(file, offset, out); });
}

Result<size_t> ReadEngine::ReadPieces(const FileRef& file, uint64_t offset, MutableByteSpan scratch, bool passing,
                                      std::vector<BlockRef>* pieces) {
  return Guarded([&] { return impl_->ReadPieces(file, offset, scratch, passing, pieces); });
}

Result<BlockRef> ReadEngine::ReadBlock(const TensorRef& tensor, uint32_t index, bool keep) {
  return Guarded([&]() -> Result<BlockRef> {
    if (index >= tensor->frame.BlockCount())
      return InvalidArgument(TensorName(tensor->id) + ": it has no block " + std::to_string(index));
    ASSIGN_OR_RETURN(const BlockPtr block, keep ? impl_->blocks.Get(*tensor, index, BlockCache::Use::kRead)
                                                : impl_->blocks.GetFresh(*tensor, index));
    return BlockRef(block->bytes(), block);
  });
}

Status ReadEngine::ReadTensor(const TensorRef& tensor, uint64_t offset_bytes, MutableByteSpan out) {
  const uint64_t bytes = tensor->frame.elems * DTypeBytes(tensor->frame.dtype);
  if (offset_bytes > bytes || out.size() > bytes - offset_bytes)
    return InvalidArgument(TensorName(tensor->id) + ": " + std::to_string(out.size()) + " bytes at " +
                           std::to_string(offset_bytes) + " end after its " + std::to_string(bytes));
  return Guarded([&]() -> Status {
    ASSIGN_OR_RETURN(std::vector<Part> parts, impl_->parts.OfTensor(tensor, offset_bytes, out));
    for (Part& part : parts) part.Copy();
    return OkStatus();
  });
}

Status ReadEngine::ReadPrediction(const std::vector<ViewSegment>& view, DType coded_dtype, uint64_t begin_elems,
                                  MutableByteSpan out) {
  if (out.size() % DTypeBytes(coded_dtype) != 0)
    return InvalidArgument("a prediction of " + std::to_string(out.size()) + " bytes is not whole elements");
  return Guarded([&] { return impl_->blocks.Assemble(view, coded_dtype, begin_elems, out); });
}

void ReadEngine::Prefetch(const FileRef& file, uint64_t offset, uint64_t bytes) {
  const uint64_t total = file->bytes();
  if (offset >= total) return;
  impl_->prefetcher.Prefetch(file, offset, offset + std::min(bytes, total - offset));
}

void ReadEngine::SetBatchDecoder(std::shared_ptr<BatchDecoder> decoder) {
  impl_->prefetcher.SetDevice(std::move(decoder));
}

std::vector<TensorId> ReadEngine::PinnedTensors() const { return impl_->files.PinnedTensors(); }

SharedMutex& ReadEngine::opens_mutex() const { return impl_->files.opens_mutex(); }

ReadStats ReadEngine::stats() const {
  const BlockCache::Stats blocks = impl_->cache.stats();
  ReadStats stats;
  stats.cache_bytes = blocks.cached_bytes;
  stats.cache_capacity_bytes = blocks.capacity_bytes;
  stats.peak_bytes = blocks.peak_bytes + impl_->tensors.peak_bytes();
  stats.hits = blocks.hits;
  stats.misses = blocks.misses;
  stats.waits = blocks.waits;
  stats.prefetched_blocks = blocks.prefetched;
  stats.decoded_blocks = impl_->blocks.decoded_blocks();
  stats.decoded_bytes = impl_->blocks.decoded_bytes();
  return stats;
}

void ReadEngine::DropCaches() {
  impl_->cache.Clear();
  impl_->tensors.Clear();
}

}  // namespace modelstore
