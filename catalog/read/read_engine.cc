#include "catalog/read/read_engine.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "catalog/read/access_pattern.h"
#include "catalog/read/batch_reader.h"
#include "catalog/read/block_cache.h"
#include "catalog/read/read_parts.h"
#include "catalog/read/tensor_table.h"
#include "codec/decode/block_decoder.h"
#include "codec/decode/compact_decoder.h"
#include "codec/decode/projected_decoder.h"
#include "codec/support/guarded.h"

namespace modelstore {
namespace {

using Use = BlockCache::Use;

// Parsed tensors get this share of the budget, free slots for blocks as much and at most kMaxSpareBytes (the slots that
// readers have passed are soon taken by what is read ahead), blocks and buffers the rest.
constexpr uint64_t kTensorShare = 16, kSpareShare = 16;
constexpr uint64_t kMaxSpareBytes = 32 << 20;

uint64_t SpareBytes(uint64_t budget_bytes) { return std::min(budget_bytes / kSpareShare, kMaxSpareBytes); }

constexpr size_t kMaxQueuedPrefetches = 256;
// Batches are larger, and fall apart into pieces where a device does not take them.
constexpr size_t kMaxQueuedWithDevice = 1024;

// Shorter pieces are copied: a reply of thousands of them would take longer.
constexpr size_t kMinPieceBytes = 16 << 10;

std::string BlockName(const OpenTensor& tensor, uint32_t index) {
  return TensorName(tensor.id) + ", block " + std::to_string(index);
}

}  // namespace

struct OpenFile::Impl {
  Sha256Digest sha256{};
  FileRecord record;
  std::vector<uint64_t> begins;  // of each extent
  std::unique_ptr<ExtentGeometry[]> extents;
  AccessPattern pattern;

  std::string Name() const { return "file " + ToHex(sha256); }
  // The extent that holds byte `offset` (< record.bytes).
  size_t ExtentAt(uint64_t offset) const {
    return static_cast<size_t>(std::upper_bound(begins.begin(), begins.end(), offset) - begins.begin()) - 1;
  }
};

OpenFile::OpenFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OpenFile::~OpenFile() = default;
uint64_t OpenFile::bytes() const { return impl_->record.bytes; }
const FileRecord& OpenFile::record() const { return impl_->record; }

struct ReadEngine::Impl {
  Impl(const KvReader& the_store, WorkerPool& the_pool, const ReadOptions& the_options)
      : store(the_store),
        pool(the_pool),
        prefetch_bytes(the_options.prefetch_bytes),
        budget_bytes(std::max(the_options.memory_budget_bytes, kMinReadBudgetBytes)),
        cache(budget_bytes - budget_bytes / kTensorShare - SpareBytes(budget_bytes), SpareBytes(budget_bytes)),
        tensors(the_store, budget_bytes / kTensorShare) {}

  const KvReader& store;
  WorkerPool& pool;
  const uint64_t prefetch_bytes;
  const uint64_t budget_bytes;
  BlockCache cache;
  TensorTable tensors;
  std::atomic<uint64_t> decoded_blocks{0}, decoded_bytes{0};
  std::shared_ptr<BatchDecoder> device;  // null: none

  SharedMutex opens_mutex MS_ACQUIRED_BEFORE(files_mutex);  // shared while a file is opened
  Mutex files_mutex;
  std::map<Sha256Digest, std::weak_ptr<OpenFile>> files MS_GUARDED_BY(files_mutex);
  std::vector<std::weak_ptr<OpenFile>> replaced MS_GUARDED_BY(files_mutex);  // by ForgetFile
  size_t sweep_at MS_GUARDED_BY(files_mutex) = 64;

  Mutex prefetch_mutex;
  CondVar prefetch_done;
  size_t prefetches MS_GUARDED_BY(prefetch_mutex) = 0;  // submitted and not finished
  bool stopping MS_GUARDED_BY(prefetch_mutex) = false;

  // Functions named …Held run within a reservation that their caller made with ReserveFor.

  Status CheckSize(const BlockPtr& block, const OpenTensor& tensor, uint32_t index) {
    if (block->bytes().size() == BlockBytes(tensor.frame, index)) return OkStatus();
    return Corruption(BlockName(tensor, index) + ": the cached block has another size than its record says");
  }

  Result<BlockPtr> DecodeHeld(const OpenTensor& tensor, uint32_t index) {
    return Guarded([&] { return DecodeAgain(tensor, index); });
  }

  // DecodeNow, again by the record that the tensor has now where that is another one.
  Result<BlockPtr> DecodeAgain(const OpenTensor& tensor, uint32_t index) {
    auto block = DecodeNow(tensor, index);
    if (!block.ok()) {
      // The reservation was made for the old record.
      const Result<TensorRef> now = tensors.Renew(tensor);
      if (now.ok() && *now != nullptr && (*now)->peak_bytes <= tensor.peak_bytes) block = DecodeNow(**now, index);
    }
    if (!block.ok()) return block.status().WithContext(BlockName(tensor, index));
    decoded_blocks.fetch_add(1, std::memory_order_relaxed);
    decoded_bytes.fetch_add((*block)->bytes().size(), std::memory_order_relaxed);
    return block;
  }

  Result<BlockPtr> DecodeNow(const OpenTensor& tensor, uint32_t index) {
    const Frame& frame = tensor.frame;
    if (frame.encoding == Encoding::kCompact) return RebuildNow(tensor, index);
    if (frame.encoding == Encoding::kProjected) return ProjectNow(tensor, index);
    const uint32_t out_bytes = BlockBytes(frame, index);
    auto stored = store.Get(Family::kBlocks, BlockKey(tensor.record.push, tensor.record.first_block + index));
    if (!stored.ok()) {
      if (stored.status().code() != StatusCode::kNotFound) return stored.status();
      return Corruption("the store lost it; remove the models that need it, prune, and push them again");
    }
    ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(stored->bytes()));
    if (coded.size() > out_bytes) {
      return Corruption("it is stored in " + std::to_string(coded.size()) + " bytes, decoded it has only " +
                        std::to_string(out_bytes));
    }
    HeldPrediction prediction;
    if (frame.encoding == Encoding::kDelta && coded.size() != out_bytes)
      RETURN_IF_ERROR(PredictHeld(tensor, frame.BlockBegin(index), frame.BlockElems(index), &prediction));
    BlockPtr block = Block::Create(cache.ledger(), out_bytes);
    if (block == nullptr) return OutOfMemory();
    RETURN_IF_ERROR(DecodeBlock(frame, index, coded, prediction.bytes, block->mutable_bytes()));
    return block;
  }

  // A block of a compact tensor, piece by piece (docs/format.md, "Compact tensors"). What a piece needs of the other
  // tensors is copied: their blocks are in the cache, because the pieces of several blocks are in one of theirs.
  Result<BlockPtr> RebuildNow(const OpenTensor& tensor, uint32_t index) {
    const Frame& frame = tensor.frame;
    const TensorRecord& record = tensor.record;
    const size_t width = DTypeBytes(frame.dtype);
    BlockPtr block = Block::Create(cache.ledger(), BlockBytes(frame, index));
    if (block == nullptr) return OutOfMemory();
    CompactScratch scratch;
    std::unique_ptr<std::byte[]> buffer;
    uint64_t buffer_bytes = 0;
    for (const CompactPiece& piece : CompactPieces(frame, index)) {
      HeldPrediction prediction;
      RETURN_IF_ERROR(PredictHeld(tensor, piece.segment->first_elem + piece.begin, piece.elems, &prediction));
      struct Input {
        const std::vector<ViewSegment>& view;
        DType dtype;
        CompactPiece::Range range;
        ByteSpan CompactInputs::*span;
      };
      const Input inputs[] = {{record.factors, DType::kU16, piece.right, &CompactInputs::right},
                              {record.factors, DType::kU16, piece.left, &CompactInputs::left},
                              {record.residual, DType::kU16, piece.residual, &CompactInputs::residual},
                              {record.scales, DType::kBF16, piece.scales, &CompactInputs::scales},
                              {record.scales, DType::kBF16, piece.steps, &CompactInputs::steps}};
      uint64_t bytes = 0;
      for (const Input& input : inputs) bytes += input.range.count * DTypeBytes(input.dtype);
      if (bytes > buffer_bytes) {
        buffer = nullptr;  // never both
        buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
        buffer_bytes = bytes;
      }
      MutableByteSpan rest(buffer.get(), bytes);
      CompactInputs spans;
      for (const Input& input : inputs) {
        const MutableByteSpan part = rest.first(input.range.count * DTypeBytes(input.dtype));
        rest = rest.subspan(part.size());
        RETURN_IF_ERROR(Assemble(input.view, input.dtype, input.range.begin, part,
                                 [&](const OpenTensor& base, uint32_t i) { return BaseBlockHeld(base, i); }));
        spans.*input.span = part;
      }
      RETURN_IF_ERROR(RebuildPiece(frame, piece, spans, prediction.bytes, scratch,
                                   block->mutable_bytes().subspan(piece.block_begin * width, piece.elems * width)));
    }
    return block;
  }

  // A block of a projected tensor (docs/format.md, "Projected tensors"), a panel of rows after the other.
  Result<BlockPtr> ProjectNow(const OpenTensor& tensor, uint32_t index) {
    const Frame& frame = tensor.frame;
    const TensorRecord& record = tensor.record;
    const Projection& p = *frame.projection;
    BlockPtr block = Block::Create(cache.ledger(), BlockBytes(frame, index));
    if (block == nullptr) return OutOfMemory();
    const auto read = [&](const std::vector<ViewSegment>& view, DType dtype, uint64_t begin, uint64_t elems,
                          Bytes* out) -> Status {
      out->resize(elems * DTypeBytes(dtype));
      return Assemble(view, dtype, begin, *out,
                      [&](const OpenTensor& base, uint32_t i) { return BaseBlockHeld(base, i); });
    };
    Bytes bytes;
    std::vector<float> norm(p.has_norm ? p.depth : 0);
    RETURN_IF_ERROR(read(record.scales, frame.dtype, 0, norm.size(), &bytes));
    ConvertElements(frame.dtype, DType::kF32, bytes, std::as_writable_bytes(std::span(norm)));
    const ProjectedRows rows = RowsOfBlock(frame, index);
    RETURN_IF_ERROR(read(record.factors, frame.dtype, rows.first * p.depth, rows.count * p.depth, &bytes));
    RowProjector projector(frame.dtype, bytes, norm, p.depth, p.columns);
    for (uint64_t d = 0; d < p.depth; d += kAxesPanelRows) {
      const uint64_t count = std::min(kAxesPanelRows, p.depth - d);
      RETURN_IF_ERROR(read(record.residual, kAxesDType, d * p.columns, count * p.columns, &bytes));
      projector.Add(bytes);
    }
    projector.Finish(rows.skip_elems, block->mutable_bytes());
    return block;
  }

  struct HeldPrediction {
    ByteSpan bytes;
    BlockPtr base_block;                  // holds them,
    std::unique_ptr<std::byte[]> buffer;  // or this does
  };

  // Elements [begin, begin + elems) of the tensor's view in its frame's coded dtype.
  Status PredictHeld(const OpenTensor& tensor, uint64_t begin, uint64_t elems, HeldPrediction* prediction) {
    const DType dtype = tensor.frame.coded_dtype;
    ASSIGN_OR_RETURN(prediction->bytes, PredictionInPlace(tensor, begin, elems, &prediction->base_block));
    if (!prediction->bytes.empty()) return OkStatus();
    const size_t bytes = elems * DTypeBytes(dtype);
    prediction->buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
    const MutableByteSpan assembled(prediction->buffer.get(), bytes);
    prediction->bytes = assembled;
    return Assemble(tensor.record.view, dtype, begin, assembled,
                    [&](const OpenTensor& base, uint32_t i) { return BaseBlockHeld(base, i); });
  }

  // The prediction as part of one decoded base block, without a copy; empty when it is not that simple.
  Result<ByteSpan> PredictionInPlace(const OpenTensor& tensor, uint64_t begin, uint64_t elems, BlockPtr* holder) {
    uint64_t at = 0;
    for (const ViewSegment& segment : tensor.record.view) {
      if (begin >= at + segment.elems) {
        at += segment.elems;
        continue;
      }
      if (segment.kind != ViewSegment::Kind::kIdentity || begin + elems > at + segment.elems) break;
      ASSIGN_OR_RETURN(const TensorRef base, tensors.GetReferenced(segment.base));
      const Frame& frame = base->frame;
      const uint64_t base_begin = segment.base_offset_elems + (begin - at);
      const uint64_t index = base_begin / frame.block_elems;
      if (frame.dtype != tensor.frame.coded_dtype || base_begin + elems > frame.elems ||
          (base_begin + elems - 1) / frame.block_elems != index)
        break;
      ASSIGN_OR_RETURN(*holder, BaseBlockHeld(*base, static_cast<uint32_t>(index)));
      const size_t width = DTypeBytes(frame.dtype);
      return (*holder)->bytes().subspan((base_begin - frame.BlockBegin(static_cast<uint32_t>(index))) * width,
                                        elems * width);
    }
    return ByteSpan();
  }

  // Elements of a view, converted to `coded_dtype`; `get_block` gives decoded blocks of the bases.
  template <typename GetBlockFn>
  Status Assemble(const std::vector<ViewSegment>& view, DType coded_dtype, uint64_t begin, MutableByteSpan out,
                  const GetBlockFn& get_block) {
    const size_t width = DTypeBytes(coded_dtype);
    uint64_t at = 0;
    for (const ViewSegment& segment : view) {
      if (out.empty()) return OkStatus();
      const uint64_t segment_end = at + segment.elems;
      if (begin < segment_end) {
        const uint64_t elems = std::min<uint64_t>(segment_end - begin, out.size() / width);
        const MutableByteSpan part = out.first(elems * width);
        if (segment.kind == ViewSegment::Kind::kNone) {
          std::memset(part.data(), 0, part.size());
        } else {
          RETURN_IF_ERROR(
              AssembleSegment(segment.base, segment.base_offset_elems + (begin - at), coded_dtype, part, get_block));
        }
        out = out.subspan(part.size());
        begin += elems;
      }
      at = segment_end;
    }
    if (!out.empty()) return Corruption("its view of the base ends before the tensor");
    return OkStatus();
  }

  template <typename GetBlockFn>
  Status AssembleSegment(const TensorId& base_id, uint64_t begin, DType coded_dtype, MutableByteSpan out,
                         const GetBlockFn& get_block) {
    ASSIGN_OR_RETURN(const TensorRef base, tensors.GetReferenced(base_id));
    const Frame& frame = base->frame;
    const size_t width = DTypeBytes(frame.dtype);
    const size_t coded_width = DTypeBytes(coded_dtype);
    if (!CanPredict(frame.dtype, coded_dtype) || begin > frame.elems || out.size() / coded_width > frame.elems - begin)
      return Corruption("its view does not fit its base, " + TensorName(base_id));
    while (!out.empty()) {
      const uint32_t index = static_cast<uint32_t>(begin / frame.block_elems);
      const uint64_t skip = begin - frame.BlockBegin(index);
      const uint64_t elems = std::min<uint64_t>(frame.BlockElems(index) - skip, out.size() / coded_width);
      ASSIGN_OR_RETURN(const BlockPtr block, get_block(*base, index));
      ConvertElements(frame.dtype, coded_dtype, block->bytes().subspan(skip * width, elems * width),
                      out.first(elems * coded_width));
      out = out.subspan(elems * coded_width);
      begin += elems;
    }
    return OkStatus();
  }

  Result<BlockPtr> BaseBlockHeld(const OpenTensor& base, uint32_t index) {
    const BlockId id = GeometryOf(base).Id(index);
    BlockCache::Flight mine;
    auto block = cache.Join(id, Use::kPredict, nullptr, 0, &mine);
    if (mine) {
      block = DecodeHeld(base, index);
      cache.Finish(std::move(mine), block, Use::kPredict, nullptr);
    }
    if (block.ok()) RETURN_IF_ERROR(CheckSize(*block, base, index));
    return block;
  }

  // wait = false: null when memory would have to be waited for.
  Result<BlockPtr> GetBlock(const OpenTensor& tensor, uint32_t index, Use use, bool wait = true) {
    const BlockId id = GeometryOf(tensor).Id(index);
    if (BlockPtr block = cache.Find(id, use)) {
      RETURN_IF_ERROR(CheckSize(block, tensor, index));
      return block;
    }
    ASSIGN_OR_RETURN(BlockCache::Reservation own, ReserveFor(tensor, index, wait));
    if (!own) return BlockPtr();
    return JoinWith(std::move(own), tensor, index, use);
  }

  Result<BlockCache::Reservation> ReserveFor(const OpenTensor& tensor, uint32_t index, bool wait = true) {
    assert(!wait || BlockRef::HeldHere() <= 0);  // below 0: what another thread made was let go of here
    ASSIGN_OR_RETURN(const uint64_t peak_bytes, PeakBytes(tensor));
    auto own = cache.Reserve(peak_bytes, wait);
    if (!own.ok()) return own.status().WithContext(BlockName(tensor, index));
    return own;
  }

  Result<uint64_t> PeakBytes(const OpenTensor& tensor) {
    if (tensor.peak_bytes != 0) return tensor.peak_bytes;
    auto bytes = tensors.CheckView(tensor);
    if (!bytes.ok()) return bytes.status().WithContext(TensorName(tensor.id));
    return bytes;
  }

  Result<BlockPtr> JoinWith(BlockCache::Reservation own, const OpenTensor& tensor, uint32_t index, Use use) {
    BlockCache::Flight mine;
    auto block = cache.Join(GeometryOf(tensor).Id(index), use, &own,
                            BlockMemory::TakenBytes(BlockBytes(tensor.frame, index)), &mine);
    if (mine) {
      block = DecodeHeld(tensor, index);
      cache.Finish(std::move(mine), block, use, &own);
    }
    if (block.ok()) RETURN_IF_ERROR(CheckSize(*block, tensor, index));
    return block;
  }

  // Lists the parts of [offset, offset + out.size()) of a tensor, with their blocks where those are cached.
  template <typename ResolveFn>
  Status FindParts(const Geometry& geometry, uint64_t offset, MutableByteSpan out, const ResolveFn& resolve,
                   std::vector<Part>* parts) {
    while (!out.empty()) {
      Part part;
      part.index = static_cast<uint32_t>(offset / geometry.block_bytes);
      part.id = geometry.Id(part.index);
      part.begin = static_cast<size_t>(offset % geometry.block_bytes);
      const size_t block_bytes = geometry.BytesOf(part.index);
      part.out = out.first(std::min(out.size(), block_bytes - part.begin));
      out = out.subspan(part.out.size());
      offset += part.out.size();
      BlockPtr block = cache.Find(part.id, Use::kRead);
      if (block != nullptr && block->bytes().size() == block_bytes) {
        part.TakeFrom(std::move(block));
      } else {
        ASSIGN_OR_RETURN(part.tensor, resolve());
        part.id.push = part.tensor->record.push;
      }
      parts->push_back(std::move(part));
    }
    return OkStatus();
  }

  // Gives every part its bytes. Nobody waits for memory while holding blocks: when there is not enough for all parts at
  // once, they are copied one by one.
  Status Fill(std::vector<Part>& parts) {
    std::vector<Part*> missing;
    for (Part& part : parts)
      if (part.bytes.empty()) missing.push_back(&part);
    const auto fill = [&](bool wait) {
      const Status status = pool.ParallelFor(missing.size(), [&](size_t i) -> Status {
        Part& part = *missing[i];
        ASSIGN_OR_RETURN(BlockPtr block, GetBlock(*part.tensor, part.index, Use::kRead, wait));
        if (block == nullptr) return OkStatus();
        part.TakeFrom(std::move(block));
        if (wait) part.Copy();
        return OkStatus();
      });
      std::erase_if(missing, [](const Part* part) { return !part->bytes.empty(); });
      return status;
    };
    if (missing.empty()) return OkStatus();
    RETURN_IF_ERROR(fill(false));
    if (missing.empty()) return OkStatus();
    for (Part& part : parts)
      if (part.block != nullptr) part.Copy();
    return fill(true);
  }

  // The geometry of an extent's tensor, the first use of which checks the extent against it.
  Result<Geometry> Resolve(OpenFile::Impl& file, size_t extent_index) {
    const Extent& extent = file.record.extents[extent_index];
    if (!file.extents[extent_index].is_known()) {
      ASSIGN_OR_RETURN(const TensorRef tensor, TensorOf(file, extent_index));
      return GeometryOf(*tensor);
    }
    return file.extents[extent_index].Get(extent.tensor);
  }

  // The extent's tensor as its record is now, from which the extent's geometry is taken.
  Result<TensorRef> TensorOf(OpenFile::Impl& file, size_t extent_index) {
    const Extent& extent = file.record.extents[extent_index];
    auto tensor = tensors.GetReferenced(extent.tensor);
    if (!tensor.ok()) return tensor.status().WithContext(file.Name());
    const uint64_t bytes = (*tensor)->record.bytes;
    const bool fits = extent.kind == Extent::Kind::kTensor
                          ? extent.bytes == bytes
                          : extent.offset_bytes <= bytes && extent.bytes <= bytes - extent.offset_bytes;
    if (!fits) {
      return Corruption(file.Name() + ": extent " + std::to_string(extent_index) + " wants " +
                        std::to_string(extent.bytes) + " bytes at " + std::to_string(extent.offset_bytes) + " of " +
                        TensorName(extent.tensor) + ", which has " + std::to_string(bytes));
    }
    file.extents[extent_index].Set(GeometryOf(**tensor));
    return tensor;
  }

  // Calls visit(extent index, offset within the extent, bytes) for the extents of [begin, end) of the file.
  template <typename VisitFn>
  static Status ForExtents(const OpenFile::Impl& file, uint64_t begin, uint64_t end, const VisitFn& visit) {
    for (size_t e = begin < end ? file.ExtentAt(begin) : 0; begin < end; ++e) {
      const uint64_t skip = begin - file.begins[e];
      const uint64_t n = std::min(end - begin, file.record.extents[e].bytes - skip);
      if (n != 0) RETURN_IF_ERROR(visit(e, skip, n));
      begin += n;
    }
    return OkStatus();
  }

  // The parts of a read, in order, filled; together as many bytes as `scratch` has, fewer only at the end of the file.
  Result<std::vector<Part>> ReadParts(const FileRef& ref, uint64_t offset, MutableByteSpan scratch) {
    OpenFile::Impl& file = *ref->impl_;
    std::vector<Part> parts;
    if (offset >= file.record.bytes || scratch.empty()) return parts;
    const uint64_t end = offset + std::min<uint64_t>(scratch.size(), file.record.bytes - offset);
    const uint64_t batch_bytes = device == nullptr || prefetch_bytes == 0 ? 0 : device->batch_bytes();
    const AccessPattern::Advice advice =
        file.pattern.Note(offset, end - offset, std::max(prefetch_bytes, 2 * batch_bytes), batch_bytes);
    if (advice.prefetch_begin < advice.prefetch_end) {
      SubmitPrefetch(ref, advice.prefetch_begin, std::min(advice.prefetch_end, file.record.bytes), true, batch_bytes);
    }
    RETURN_IF_ERROR(ForExtents(file, offset, end, [&](size_t e, uint64_t skip, uint64_t n) -> Status {
      const Extent& extent = file.record.extents[e];
      const MutableByteSpan out = scratch.first(n);
      scratch = scratch.subspan(n);
      if (extent.kind == Extent::Kind::kLiteral) {
        Part part;
        part.out = out;
        part.bytes = ByteSpan(extent.literal).subspan(skip, n);
        parts.push_back(std::move(part));
        return OkStatus();
      }
      ASSIGN_OR_RETURN(const Geometry geometry, Resolve(file, e));
      return FindParts(
          geometry, extent.offset_bytes + skip, out, [&] { return TensorOf(file, e); }, &parts);
    }));
    Status status = Fill(parts);
    if (!status.ok()) return status.WithContext(file.Name());
    return parts;
  }

  Result<size_t> Read(const FileRef& file, uint64_t offset, MutableByteSpan out) {
    ASSIGN_OR_RETURN(std::vector<Part> parts, ReadParts(file, offset, out));
    size_t bytes = 0;
    for (Part& part : parts) {
      part.Copy();
      bytes += part.out.size();
    }
    return bytes;
  }

  Result<size_t> ReadPieces(const FileRef& file, uint64_t offset, MutableByteSpan scratch, bool passing,
                            std::vector<BlockRef>* pieces) {
    ASSIGN_OR_RETURN(std::vector<Part> parts, ReadParts(file, offset, scratch));
    if (passing) {
      std::vector<BlockCache::ReadPart> read;
      for (const Part& part : parts)
        if (part.id.push != 0) read.push_back({part.id, part.out.size()});
      cache.Pass(read);
    }
    size_t bytes = 0;
    for (Part& part : parts) {
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

  // Queues the blocks of [begin, end) in pieces of about a block, or of a batch for the device; what does not fit the
  // queue is dropped. `advised`: skip what the reader that it was advised for has passed meanwhile.
  void SubmitPrefetch(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes = 0) {
    // Without the memory for a task there is no reading ahead: what it would have failed of is the reader's to report.
    (void)Guarded([&] { return SubmitPieces(file, begin, end, advised, batch_bytes); });
  }

  Status SubmitPieces(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes) {
    while (begin < end) {
      const bool is_batch = batch_bytes != 0 && end - begin >= batch_bytes;
      const uint64_t step = is_batch ? batch_bytes : kBlockBytes;
      const uint64_t piece_end = std::min(end, begin / step * step + step);
      const auto prefetch = [this, held = file, begin, piece_end, advised, is_batch] {
        OpenFile::Impl& opened = *held->impl_;
        if (advised && !opened.pattern.IsAhead(begin, piece_end)) return;
        if (!is_batch) return PrefetchPiece(opened, begin, piece_end);
        if (!PrefetchOnDevice(held, begin, piece_end)) SubmitPrefetch(held, begin, piece_end, advised);
      };
      if (!Submit(prefetch)) break;
      begin = piece_end;
    }
    return OkStatus();
  }

  // Runs `task` some time later; false: not, as the queue is full or the engine ends.
  bool Submit(std::function<void()> task) {
    // What ~ReadEngine waits for, as long as the task is queued or runs.
    auto under_way = std::make_shared<Prefetching>(this);
    if (under_way->is_refused()) return false;
    return pool.Submit(
        [under_way = std::move(under_way), run = std::move(task)]() mutable {
          const std::shared_ptr<Prefetching> last = std::move(under_way);
          const std::function<void()> now = std::move(run);  // what it holds goes before ~ReadEngine may end
          now();
        },
        device == nullptr ? kMaxQueuedPrefetches : kMaxQueuedWithDevice);
  }

  // Counts a prefetch from when it is submitted to its end.
  class Prefetching {
   public:
    explicit Prefetching(Impl* engine) : engine_(*engine) {
      const MutexLock lock(engine_.prefetch_mutex);
      is_refused_ = engine_.stopping;
      if (!is_refused_) ++engine_.prefetches;
    }
    ~Prefetching() {
      if (!is_refused_) engine_.EndPrefetch();
    }
    Prefetching(const Prefetching&) = delete;
    Prefetching& operator=(const Prefetching&) = delete;
    bool is_refused() const { return is_refused_; }

   private:
    Impl& engine_;
    bool is_refused_ = false;
  };

  void EndPrefetch() {
    const MutexLock lock(prefetch_mutex);
    if (--prefetches == 0) prefetch_done.NotifyAll();
  }

  bool IsStopping() {
    const MutexLock lock(prefetch_mutex);
    return stopping;
  }

  // visit(tensor, index) for the blocks of [begin, end) of the file that nobody has or decodes.
  template <typename VisitFn>
  Status ForMissingBlocks(OpenFile::Impl& file, uint64_t begin, uint64_t end, const VisitFn& visit) {
    return ForExtents(file, begin, end, [&](size_t e, uint64_t skip, uint64_t n) -> Status {
      const Extent& extent = file.record.extents[e];
      if (extent.kind == Extent::Kind::kLiteral) return OkStatus();
      ASSIGN_OR_RETURN(const Geometry geometry, Resolve(file, e));
      const uint64_t from = extent.offset_bytes + skip;
      for (uint64_t i = from / geometry.block_bytes; i <= (from + n - 1) / geometry.block_bytes; ++i) {
        const uint32_t index = static_cast<uint32_t>(i);
        if (cache.Contains(geometry.Id(index))) continue;
        ASSIGN_OR_RETURN(const TensorRef tensor, TensorOf(file, e));
        if (tensor->record.push != geometry.push && cache.Contains(GeometryOf(*tensor).Id(index))) continue;
        RETURN_IF_ERROR(visit(tensor, index));
      }
      return OkStatus();
    });
  }

  Status PrefetchBlock(const TensorRef& tensor, uint32_t index) {
    ASSIGN_OR_RETURN(const uint64_t peak_bytes, PeakBytes(*tensor));
    BlockCache::Reservation own =
        cache.TryReserve(peak_bytes, BlockMemory::TakenBytes(BlockBytes(tensor->frame, index)));
    return own ? JoinWith(std::move(own), *tensor, index, Use::kPrefetch).status() : OkStatus();
  }

  // Failures of prefetching are the reader's to report, should it ever ask for these bytes.
  void PrefetchPiece(OpenFile::Impl& file, uint64_t begin, uint64_t end) {
    if (IsStopping()) return;
    (void)Guarded([&] {
      return ForMissingBlocks(file, begin, end,
                              [&](const TensorRef& tensor, uint32_t index) { return PrefetchBlock(tensor, index); });
    });
  }

  // On a device. Nobody waits for what it decodes: a reader that comes earlier decodes for itself. So no flight and no
  // reservation is held while it runs. False: the device does nothing of it.
  bool PrefetchOnDevice(const FileRef& held, uint64_t begin, uint64_t end) {
    return IsStopping() || Guarded([&] { return DecodeOnDevice(held, begin, end); }).ok();
  }

  Status DecodeOnDevice(const FileRef& held, uint64_t begin, uint64_t end) {
    const std::unique_ptr<BatchDecoder::Batch> batch = device->Begin(end - begin);
    if (batch == nullptr) return Busy("no slot of the device is free");
    BatchReader on_device(store, cache, tensors, batch->builder(),
                          [&](const std::vector<ViewSegment>& view, DType dtype, uint64_t from, MutableByteSpan out) {
                            return AssembleNow(view, dtype, from, out, /*wait=*/false);
                          });
    std::set<std::pair<TensorId, uint32_t>> seen;
    RETURN_IF_ERROR(ForMissingBlocks(*held->impl_, begin, end, [&](const TensorRef& tensor, uint32_t index) -> Status {
      if (!seen.emplace(tensor->id, index).second) return OkStatus();
      const bool takes = device->Takes(tensor->frame.encoding);
      const Result<bool> added = takes ? on_device.Add(tensor, index) : Result<bool>(false);
      if (!added.ok() || !*added) SubmitPrefetch(held, tensor, index);
      return OkStatus();
    }));
    if (on_device.blocks().empty()) return OkStatus();
    if (!batch->Run().ok()) {
      for (const BatchReader::Block& block : on_device.blocks()) SubmitPrefetch(held, block.tensor, block.index);
      return OkStatus();
    }
    uint64_t decoded = 0, failed = 0;
    for (const BatchReader::Block& block : on_device.blocks()) {
      if (batch->builder().Succeeded(block.block, batch->output())) {
        decoded += Keep(block, batch->builder().BytesOf(block.block, batch->output()));
        continue;
      }
      ++failed;
      // One that the CPU decodes is not damaged: the device is.
      const Result<BlockPtr> now = GetBlock(*block.tensor, block.index, Use::kPrefetch, /*wait=*/false);
      if (now.ok() && *now != nullptr)
        batch->Distrust(BlockName(*block.tensor, block.index) + " decodes on the CPU, but not on the GPU");
    }
    batch->Report(decoded, failed);
    return OkStatus();
  }

  // What a device leaves to the CPU.
  void SubmitPrefetch(const FileRef& file, const TensorRef& tensor, uint32_t index) {
    (void)Guarded([&] {
      Submit([this, file, tensor, index] { (void)Guarded([&] { return PrefetchBlock(tensor, index); }); });
      return OkStatus();
    });
  }

  Status AssembleNow(const std::vector<ViewSegment>& view, DType dtype, uint64_t begin, MutableByteSpan out,
                     bool wait = true) {
    return Assemble(view, dtype, begin, out, [&](const OpenTensor& base, uint32_t index) -> Result<BlockPtr> {
      ASSIGN_OR_RETURN(BlockPtr block, GetBlock(base, index, Use::kPredict, wait));
      if (block == nullptr) return ResourceExhausted("no memory is free for reading now");
      return block;
    });
  }

  // Takes decoded bytes into the cache, unless somebody was faster or there is no room. How many they were.
  uint64_t Keep(const BatchReader::Block& from, ByteSpan bytes) {
    if (cache.Contains(GeometryOf(*from.tensor).Id(from.index))) return 0;
    const uint64_t taken = BlockMemory::TakenBytes(bytes.size());
    BlockCache::Reservation own = cache.TryReserve(taken, taken);
    BlockPtr block = own ? Block::Create(cache.ledger(), bytes.size()) : nullptr;
    if (block == nullptr) return 0;
    BlockCache::Flight mine;
    (void)cache.Join(GeometryOf(*from.tensor).Id(from.index), Use::kPrefetch, &own, taken, &mine);
    if (!mine) return 0;
    std::memcpy(block->mutable_bytes().data(), bytes.data(), bytes.size());
    cache.Finish(std::move(mine), Result<BlockPtr>(block), Use::kPrefetch, &own);
    decoded_blocks.fetch_add(1, std::memory_order_relaxed);
    decoded_bytes.fetch_add(bytes.size(), std::memory_order_relaxed);
    return bytes.size();
  }
};

ReadEngine::ReadEngine(const KvReader& store, WorkerPool& pool, const ReadOptions& options)
    : impl_(std::make_unique<Impl>(store, pool, options)) {}

ReadEngine::~ReadEngine() {
  const MutexLock lock(impl_->prefetch_mutex);
  impl_->stopping = true;
  while (impl_->prefetches != 0) impl_->prefetch_done.Wait(impl_->prefetch_mutex);
}

Result<FileRef> ReadEngine::OpenFileByHash(const Sha256Digest& sha256) {
  return Guarded([&]() -> Result<FileRef> {
    {
      const MutexLock lock(impl_->files_mutex);
      if (const auto it = impl_->files.find(sha256); it != impl_->files.end()) {
        if (FileRef file = it->second.lock()) return file;
      }
    }
    const ReaderLock opening(impl_->opens_mutex);
    auto file = std::make_unique<OpenFile::Impl>();
    file->sha256 = sha256;
    auto value = impl_->store.Get(Family::kFiles, FileKey(sha256));
    if (!value.ok()) {
      if (value.status().code() == StatusCode::kNotFound)
        return NotFound(file->Name() + ": the store has no such file");
      return value.status().WithContext(file->Name());
    }
    auto record = ParseFileRecord(value->bytes());
    if (!record.ok()) return record.status().WithContext(file->Name());
    file->record = std::move(*record);
    const std::vector<Extent>& extents = file->record.extents;
    file->begins.reserve(extents.size());
    uint64_t at = 0;
    for (const Extent& extent : extents) {
      file->begins.push_back(at);
      if (extent.bytes > file->record.bytes - at ||
          (extent.kind == Extent::Kind::kLiteral && extent.literal.size() != extent.bytes))
        return Corruption(file->Name() + ": extent " + std::to_string(file->begins.size() - 1) +
                          " does not fit the file of " + std::to_string(file->record.bytes) + " bytes");
      at += extent.bytes;
    }
    if (at != file->record.bytes)
      return Corruption(file->Name() + ": its extents cover " + std::to_string(at) + " of " +
                        std::to_string(file->record.bytes) + " bytes");
    file->extents = std::make_unique<ExtentGeometry[]>(extents.size());
    FileRef opened(new OpenFile(std::move(file)));

    // Whoever opens the same file shares one object, so that PinnedTensors sees it as long as anybody has it open.
    const MutexLock lock(impl_->files_mutex);
    std::weak_ptr<OpenFile>& slot = impl_->files[sha256];
    if (FileRef other = slot.lock()) return other;
    slot = opened;
    if (impl_->files.size() > impl_->sweep_at) {
      std::erase_if(impl_->files, [](const auto& entry) { return entry.second.expired(); });
      impl_->sweep_at = 64 + 2 * impl_->files.size();
    }
    return opened;
  });
}

void ReadEngine::ForgetFile(const Sha256Digest& sha256) {
  // Whoever read the old record meanwhile has its file in `files` then.
  const WriterLock opens(impl_->opens_mutex);
  const MutexLock lock(impl_->files_mutex);
  std::erase_if(impl_->replaced, [](const auto& file) { return file.expired(); });
  const auto it = impl_->files.find(sha256);
  if (it == impl_->files.end()) return;
  impl_->replaced.push_back(it->second);
  impl_->files.erase(it);
}

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
    if (keep) {
      ASSIGN_OR_RETURN(const BlockPtr block, impl_->GetBlock(*tensor, index, Use::kRead));
      return BlockRef(block->bytes(), block);
    }
    ASSIGN_OR_RETURN(BlockCache::Reservation own, impl_->ReserveFor(*tensor, index));
    ASSIGN_OR_RETURN(const BlockPtr block, impl_->DecodeHeld(*tensor, index));
    impl_->cache.Charge(block, own);
    return BlockRef(block->bytes(), block);
  });
}

Status ReadEngine::ReadTensor(const TensorRef& tensor, uint64_t offset_bytes, MutableByteSpan out) {
  const uint64_t bytes = tensor->frame.elems * DTypeBytes(tensor->frame.dtype);
  if (offset_bytes > bytes || out.size() > bytes - offset_bytes)
    return InvalidArgument(TensorName(tensor->id) + ": " + std::to_string(out.size()) + " bytes at " +
                           std::to_string(offset_bytes) + " end after its " + std::to_string(bytes));
  return Guarded([&]() -> Status {
    std::vector<Part> parts;
    Geometry geometry = GeometryOf(*tensor);
    geometry.tensor_bytes = bytes;
    RETURN_IF_ERROR(impl_->FindParts(
        geometry, offset_bytes, out, [&]() -> Result<TensorRef> { return tensor; }, &parts));
    RETURN_IF_ERROR(impl_->Fill(parts));
    for (Part& part : parts) part.Copy();
    return OkStatus();
  });
}

Status ReadEngine::ReadPrediction(const std::vector<ViewSegment>& view, DType coded_dtype, uint64_t begin_elems,
                                  MutableByteSpan out) {
  if (out.size() % DTypeBytes(coded_dtype) != 0)
    return InvalidArgument("a prediction of " + std::to_string(out.size()) + " bytes is not whole elements");
  return Guarded([&] { return impl_->AssembleNow(view, coded_dtype, begin_elems, out); });
}

void ReadEngine::Prefetch(const FileRef& file, uint64_t offset, uint64_t bytes) {
  const uint64_t total = file->bytes();
  if (offset >= total) return;
  impl_->SubmitPrefetch(file, offset, offset + std::min(bytes, total - offset), false);
}

SharedMutex& ReadEngine::opens_mutex() const { return impl_->opens_mutex; }

std::vector<TensorId> ReadEngine::PinnedTensors() const {
  std::vector<FileRef> open;
  {
    const MutexLock lock(impl_->files_mutex);
    for (const auto& [sha256, weak] : impl_->files) {
      if (FileRef file = weak.lock()) open.push_back(std::move(file));
    }
    for (const std::weak_ptr<OpenFile>& weak : impl_->replaced) {
      if (FileRef file = weak.lock()) open.push_back(std::move(file));
    }
  }
  std::set<TensorId> pinned;
  std::vector<TensorId> to_visit;
  const auto pin = [&](const TensorId& id) {
    if (pinned.insert(id).second) to_visit.push_back(id);
  };
  for (const FileRef& file : open) {
    for (const Extent& extent : file->record().extents) {
      if (extent.kind != Extent::Kind::kLiteral) pin(extent.tensor);
    }
  }
  while (!to_visit.empty()) {
    const TensorId id = to_visit.back();
    to_visit.pop_back();
    // A record that cannot be read names no bases; its tensor cannot be read either.
    const Result<TensorRecord> record = LoadTensorRecord(impl_->store, id);
    if (!record.ok()) continue;
    ForEachReference(*record, pin);
  }
  return {pinned.begin(), pinned.end()};
}

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
  stats.decoded_blocks = impl_->decoded_blocks.load(std::memory_order_relaxed);
  stats.decoded_bytes = impl_->decoded_bytes.load(std::memory_order_relaxed);
  return stats;
}

void ReadEngine::SetBatchDecoder(std::shared_ptr<BatchDecoder> decoder) { impl_->device = std::move(decoder); }

void ReadEngine::DropCaches() {
  impl_->cache.Clear();
  impl_->tensors.Clear();
}

}  // namespace modelstore
