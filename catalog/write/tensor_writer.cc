#include "catalog/write/tensor_writer.h"

#include <algorithm>

#include "codec/decode/block_decoder.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

// Blocks per task: long enough to amortise a task and a write batch, short enough to balance two cores and to keep a
// batch, which RocksDB copies, at 1 MiB.
constexpr uint32_t kBlocksPerTask = 4;

size_t TaskCount(uint32_t blocks) { return (blocks + kBlocksPerTask - 1) / kBlocksPerTask; }

}  // namespace

// The prediction of a delta's blocks, made by the reader, so that push and mount see the same bits.
class TensorWriter::Prediction {
 public:
  struct Predicted {
    ByteSpan bytes;
    BlockRef owner;  // of `bytes`, unless they are held or in the scratch buffer
  };

  // A base with the delta's dtype and blocks is used as it lies in the reader's cache. Any other is converted: once, in
  // parallel, into `hold` when that takes at most hold_bytes; else for every pass again.
  static Result<Prediction> Make(Catalog& catalog, Lanes& lanes, const Frame& frame,
                                 const std::vector<ViewSegment>& view, uint64_t hold_bytes, Buffer* hold) {
    Prediction prediction(catalog, frame.coded_dtype, view);
    const uint32_t width = prediction.width_;
    if (view.empty()) return prediction;
    const ViewSegment& first = view.front();
    if (first.kind == ViewSegment::Kind::kIdentity && first.elems == frame.elems && first.base_offset_elems == 0) {
      ASSIGN_OR_RETURN(const TensorRef base, catalog.reader().OpenTensorById(first.base));
      if (base->frame.dtype == frame.coded_dtype && base->frame.block_elems == frame.block_elems) {
        prediction.aligned_base_ = base;
        return prediction;
      }
    }
    if (frame.elems > hold_bytes / width) return prediction;
    const MutableByteSpan all = hold->Resize(frame.elems * width);
    const auto make = [&](size_t task) -> Status {
      const uint64_t begin = frame.BlockBegin(static_cast<uint32_t>(task * kBlocksPerTask));
      const uint64_t end = std::min(begin + uint64_t{kBlocksPerTask} * frame.block_elems, frame.elems);
      return catalog.reader().ReadPrediction(view, frame.coded_dtype, begin,
                                             all.subspan(begin * width, (end - begin) * width));
    };
    RETURN_IF_ERROR(lanes.Run(TaskCount(frame.BlockCount()), make));
    prediction.held_ = all;
    return prediction;
  }

  Result<Predicted> Block(const Frame& frame, uint32_t index, Buffer* scratch) const {
    if (view_->empty()) return Predicted{};
    const uint64_t begin = frame.BlockBegin(index);
    const uint64_t elems = frame.BlockElems(index);
    if (aligned_base_) {
      ASSIGN_OR_RETURN(BlockRef block, catalog_->reader().ReadBlock(aligned_base_, index));
      const ByteSpan bytes = block.bytes().first(elems * width_);
      return Predicted{bytes, std::move(block)};
    }
    if (!held_.empty()) return Predicted{held_.subspan(begin * width_, elems * width_), {}};
    const MutableByteSpan out = scratch->Resize(elems * width_);
    RETURN_IF_ERROR(catalog_->reader().ReadPrediction(*view_, coded_dtype_, begin, out));
    return Predicted{out, {}};
  }

 private:
  Prediction(Catalog& catalog, DType coded_dtype, const std::vector<ViewSegment>& view)
      : catalog_(&catalog), coded_dtype_(coded_dtype), width_(DTypeBytes(coded_dtype)), view_(&view) {}
  Catalog* catalog_;
  DType coded_dtype_;
  uint32_t width_;
  const std::vector<ViewSegment>* view_;
  TensorRef aligned_base_;
  ByteSpan held_;
};

Result<TensorRecord> TensorWriter::Store(const TensorData& data, const BaseChoice& choice, uint32_t first_block,
                                         JobPart* part) {
  EncodePlan plan = choice.plan;
  static const std::vector<ViewSegment> kNoView;
  const std::vector<ViewSegment>& view = plan.encoding == Encoding::kDelta ? choice.view : kNoView;
  const uint32_t width = DTypeBytes(plan.dtype);
  while (true) {
    FrameBuilder builder(plan);
    const Frame& shape = builder.frame();
    BufferPool::Lease hold(holds_);
    ASSIGN_OR_RETURN(const Prediction prediction,
                     Prediction::Make(catalog_, lanes_, shape, view, hold_bytes_, hold.get()));
    if (builder.needs_statistics()) {
      const uint32_t blocks = shape.BlockCount();
      std::atomic<uint32_t> next{0};
      struct Gathered {
        Mutex mutex;
        FrameBuilder* const builder MS_PT_GUARDED_BY(mutex);
      } gathered{{}, &builder};
      // Each thread that takes part counts by itself first.
      const auto gather = [&](size_t) -> Status {
        uint32_t i = next++;
        if (i >= blocks) return OkStatus();
        FrameBuilder own(plan);
        Buffer source_scratch, prediction_scratch;
        for (; i < blocks; i = next++) {
          RETURN_IF_ERROR(job_.Check());
          ASSIGN_OR_RETURN(const ByteSpan source,
                           data.Read(shape.BlockBegin(i) * width, BlockBytes(shape, i), &source_scratch));
          ASSIGN_OR_RETURN(const Prediction::Predicted predicted, prediction.Block(shape, i, &prediction_scratch));
          own.AddBlock(i, source, predicted.bytes);
        }
        const MutexLock lock(gathered.mutex);
        gathered.builder->Merge(own);
        return OkStatus();
      };
      RETURN_IF_ERROR(lanes_.Run(std::min<size_t>(TaskCount(blocks), lanes_.count()), gather));
      if (!builder.plan_holds()) {
        plan = WithoutNarrowing(plan);
        continue;
      }
    }
    ASSIGN_OR_RETURN(const BlockEncoder encoder, std::move(builder).Finish());
    const Frame& frame = encoder.frame();
    TensorRecord record;
    record.dtype = data.extent().dtype;
    record.shape = data.extent().shape;
    record.bytes = data.extent().bytes;
    record.push = push_;
    record.first_block = first_block;
    record.block_count = frame.BlockCount();
    if (frame.encoding == Encoding::kDelta) {
      record.MutableViewOf(InputRole::kBase) = view;
      record.depth = 1;
      for (const ViewSegment& segment : view) {
        if (segment.kind != ViewSegment::Kind::kIdentity) continue;
        ASSIGN_OR_RETURN(const TensorRef base, catalog_.reader().OpenTensorById(segment.base));
        record.depth = std::max<uint8_t>(record.depth, base->record.depth + 1);
      }
    }
    record.frame = SerializeFrame(frame);
    if (record.block_count > BlocksFor(record.bytes))
      return Internal("a frame of " + std::to_string(record.block_count) + " blocks where " +
                      std::to_string(BlocksFor(record.bytes)) + " were expected");
    RETURN_IF_ERROR(WriteBlocks(data, encoder, prediction, part, &record));
    return record;
  }
}

Status TensorWriter::WriteBlocks(const TensorData& data, const BlockEncoder& encoder, const Prediction& prediction,
                                 JobPart* part, TensorRecord* record) {
  const Frame& frame = encoder.frame();
  const bool predicts = frame.encoding == Encoding::kDelta;
  const uint32_t width = DTypeBytes(frame.dtype);
  std::atomic<uint64_t> coded_bytes{0};
  const auto write = [&](size_t task) -> Status {
    Buffer source_scratch, prediction_scratch;
    Bytes coded;
    WriteBatch batch;
    const uint32_t begin = static_cast<uint32_t>(task * kBlocksPerTask);
    const uint32_t end = std::min(begin + kBlocksPerTask, record->block_count);
    for (uint32_t i = begin; i < end; ++i) {
      RETURN_IF_ERROR(job_.Check());
      ASSIGN_OR_RETURN(const ByteSpan source,
                       data.Read(frame.BlockBegin(i) * width, BlockBytes(frame, i), &source_scratch));
      Prediction::Predicted predicted;
      if (predicts) {
        ASSIGN_OR_RETURN(predicted, prediction.Block(frame, i, &prediction_scratch));
      }
      RETURN_IF_ERROR(encoder.Encode(i, source, predicted.bytes, &coded));
      const Bytes value = SealBlock(coded);
      coded_bytes += value.size();
      batch.Put(Family::kBlocks, BlockKey(push_, record->first_block + i), value);
      if (part != nullptr) part->Advance(source.size());
    }
    written_bytes_ += batch.put_bytes();
    return catalog_.store().Write(batch, Durability::kNone);
  };
  RETURN_IF_ERROR(lanes_.Run(TaskCount(record->block_count), write));
  record->coded_bytes = coded_bytes;
  return OkStatus();
}

Result<Hash128> TensorWriter::HashStored(const TensorRecord& record) {
  ASSIGN_OR_RETURN(const Frame frame, ParseFrame(record.frame));
  const uint32_t width = DTypeBytes(frame.dtype);
  const uint32_t blocks = frame.BlockCount();
  TensorRef computed;
  if (!FactsOf(frame.encoding).has_blocks) {
    ASSIGN_OR_RETURN(computed, catalog_.reader().OpenUnpublished(TensorId{}, record));
  } else if (frame.encoding == Encoding::kDelta) {
    RETURN_IF_ERROR(catalog_.reader().OpenUnpublished(TensorId{}, record).status());  // as readers will
  }
  Hasher128 hasher = StartTensorHash(record.dtype, record.shape);
  // Windows of a few blocks are decoded in parallel and hashed in order.
  const uint32_t window_blocks =
      static_cast<uint32_t>(std::clamp<uint64_t>(hold_bytes_ / kBlockBytes, 1, lanes_.count() * 2));
  BufferPool::Lease window(holds_);
  for (uint32_t first = 0; first < blocks; first += window_blocks) {
    RETURN_IF_ERROR(job_.Check());
    const uint32_t count = std::min(window_blocks, blocks - first);
    const uint64_t begin = frame.BlockBegin(first);
    const uint64_t elems = std::min(uint64_t{count} * frame.block_elems, frame.elems - begin);
    const MutableByteSpan decoded = window->Resize(elems * width);
    const auto decode = [&](size_t offset) -> Status {
      const uint32_t i = first + static_cast<uint32_t>(offset);
      const MutableByteSpan out = decoded.subspan((frame.BlockBegin(i) - begin) * width, BlockBytes(frame, i));
      if (computed != nullptr) {
        ASSIGN_OR_RETURN(const BlockRef block, catalog_.reader().ReadBlock(computed, i, /*keep=*/false));
        std::copy(block.bytes().begin(), block.bytes().end(), out.begin());
        return OkStatus();
      }
      BufferPool::Lease prediction(scratches_);
      ASSIGN_OR_RETURN(const StoredValue value,
                       catalog_.store().Get(Family::kBlocks, BlockKey(record.push, record.first_block + i)));
      ASSIGN_OR_RETURN(const ByteSpan coded, OpenBlock(value.bytes()));
      if (frame.encoding == Encoding::kDelta) {
        RETURN_IF_ERROR(catalog_.reader().ReadPrediction(
            record.ViewOf(InputRole::kBase), frame.coded_dtype, frame.BlockBegin(i),
            prediction->Resize(uint64_t{frame.BlockElems(i)} * DTypeBytes(frame.coded_dtype))));
      }
      return DecodeBlock(frame, i, coded, prediction->span(), out);
    };
    RETURN_IF_ERROR(lanes_.Run(count, decode));
    hasher.Update(decoded);
    job_.Advance(decoded.size());
  }
  return hasher.Finish();
}

}  // namespace modelstore
