#include "catalog/read/prefetcher.h"

#include <algorithm>
#include <set>
#include <utility>

#include "codec/support/guarded.h"

namespace modelstore {
namespace {

constexpr size_t kMaxQueued = 256;
// Batches are larger, and fall apart into pieces where a device does not take them.
constexpr size_t kMaxQueuedWithDevice = 1024;

}  // namespace

// Counts a prefetch from when it is submitted to its end.
class Prefetcher::UnderWay {
 public:
  explicit UnderWay(Prefetcher* owner) : owner_(*owner) {
    const MutexLock lock(owner_.mutex_);
    is_refused_ = owner_.is_stopping_;
    if (!is_refused_) ++owner_.under_way_;
  }
  ~UnderWay() {
    if (is_refused_) return;
    const MutexLock lock(owner_.mutex_);
    if (--owner_.under_way_ == 0) owner_.all_done_.NotifyAll();
  }
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;
  bool is_refused() const { return is_refused_; }

 private:
  Prefetcher& owner_;
  bool is_refused_ = false;
};

Prefetcher::~Prefetcher() {
  const MutexLock lock(mutex_);
  is_stopping_ = true;
  while (under_way_ != 0) all_done_.Wait(mutex_);
}

bool Prefetcher::IsStopping() const {
  const MutexLock lock(mutex_);
  return is_stopping_;
}

void Prefetcher::NoteRead(const FileRef& file, uint64_t offset, uint64_t bytes) {
  if (offset >= file->bytes() || bytes == 0) return;
  bytes = std::min(bytes, file->bytes() - offset);
  const uint64_t batch_bytes = device_ == nullptr || ahead_bytes_ == 0 ? 0 : device_->batch_bytes();
  const AccessPattern::Advice advice =
      file->pattern().Note(offset, bytes, std::max(ahead_bytes_, 2 * batch_bytes), batch_bytes);
  if (advice.prefetch_begin < advice.prefetch_end)
    Queue(file, advice.prefetch_begin, std::min(advice.prefetch_end, file->bytes()), true, batch_bytes);
}

void Prefetcher::Queue(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes) {
  // Without the memory for a task there is no reading ahead.
  (void)Guarded([&] { return QueuePieces(file, begin, end, advised, batch_bytes); });
}

Status Prefetcher::QueuePieces(const FileRef& file, uint64_t begin, uint64_t end, bool advised, uint64_t batch_bytes) {
  while (begin < end) {
    const bool is_batch = batch_bytes != 0 && end - begin >= batch_bytes;
    const uint64_t step = is_batch ? batch_bytes : kBlockBytes;
    const uint64_t piece_end = std::min(end, begin / step * step + step);
    const auto prefetch = [this, file, begin, piece_end, advised, is_batch] {
      if (advised && !file->pattern().IsAhead(begin, piece_end)) return;
      if (!is_batch) return DecodePiece(*file, begin, piece_end);
      if (!DecodeBatch(file, begin, piece_end)) Queue(file, begin, piece_end, advised, 0);
    };
    if (!Submit(prefetch)) break;
    begin = piece_end;
  }
  return OkStatus();
}

void Prefetcher::QueueBlock(const FileRef& file, const TensorRef& tensor, uint32_t index) {
  (void)Guarded([&] {
    Submit([this, file, tensor, index] { (void)Guarded([&] { return blocks_.Prefetch(*tensor, index); }); });
    return OkStatus();
  });
}

bool Prefetcher::Submit(std::function<void()> task) {
  // The destructor waits for this object, as long as the task is queued or runs.
  auto under_way = std::make_shared<UnderWay>(this);
  if (under_way->is_refused()) return false;
  return pool_.Submit(
      [under_way = std::move(under_way), run = std::move(task)]() mutable {
        const std::shared_ptr<UnderWay> last = std::move(under_way);
        const std::function<void()> now = std::move(run);  // what the task holds goes before the destructor may end
        now();
      },
      device_ == nullptr ? kMaxQueued : kMaxQueuedWithDevice);
}

template <typename VisitFn>
Status Prefetcher::ForMissingBlocks(OpenFile& file, uint64_t begin, uint64_t end, const VisitFn& visit) {
  return file.ForExtents(begin, end, [&](size_t e, uint64_t skip, uint64_t n) -> Status {
    const Extent& extent = file.record().extents[e];
    if (extent.kind == Extent::Kind::kLiteral) return OkStatus();
    ASSIGN_OR_RETURN(const Geometry geometry, files_.GeometryOfExtent(file, e));
    const uint64_t from = extent.offset_bytes + skip;
    for (uint64_t i = from / geometry.block_bytes; i <= (from + n - 1) / geometry.block_bytes; ++i) {
      const uint32_t index = static_cast<uint32_t>(i);
      if (cache_.Contains(geometry.Id(index))) continue;
      ASSIGN_OR_RETURN(const TensorRef tensor, files_.TensorOf(file, e));
      if (tensor->record.push != geometry.push && cache_.Contains(GeometryOf(*tensor).Id(index))) continue;
      RETURN_IF_ERROR(visit(tensor, index));
    }
    return OkStatus();
  });
}

void Prefetcher::DecodePiece(OpenFile& file, uint64_t begin, uint64_t end) {
  if (IsStopping()) return;
  (void)Guarded([&] {
    return ForMissingBlocks(file, begin, end,
                            [&](const TensorRef& tensor, uint32_t index) { return blocks_.Prefetch(*tensor, index); });
  });
}

bool Prefetcher::DecodeBatch(const FileRef& file, uint64_t begin, uint64_t end) {
  return IsStopping() || Guarded([&] { return DecodeOnDevice(file, begin, end); }).ok();
}

Status Prefetcher::DecodeOnDevice(const FileRef& file, uint64_t begin, uint64_t end) {
  const std::unique_ptr<BatchDecoder::Batch> batch = device_->Begin(end - begin);
  if (batch == nullptr) return Busy("no slot of the device is free");
  BatchReader on_device(cache_, views_, blocks_, batch->builder());
  std::set<std::pair<TensorId, uint32_t>> seen;
  RETURN_IF_ERROR(ForMissingBlocks(*file, begin, end, [&](const TensorRef& tensor, uint32_t index) -> Status {
    if (!seen.emplace(tensor->id, index).second) return OkStatus();
    const bool takes = device_->Takes(tensor->frame.encoding);
    const Result<bool> added = takes ? on_device.Add(tensor, index) : Result<bool>(false);
    if (!added.ok() || !*added) QueueBlock(file, tensor, index);
    return OkStatus();
  }));
  if (on_device.added().empty()) return OkStatus();
  if (batch->Run().ok()) {
    KeepBatch(*batch, on_device);
  } else {
    for (const BatchReader::Block& block : on_device.added()) QueueBlock(file, block.tensor, block.index);
  }
  return OkStatus();
}

void Prefetcher::KeepBatch(BatchDecoder::Batch& batch, const BatchReader& decoded) {
  uint64_t decoded_bytes = 0, failed = 0;
  for (const BatchReader::Block& block : decoded.added()) {
    if (batch.builder().Succeeded(block.block, batch.output())) {
      decoded_bytes += blocks_.Keep(*block.tensor, block.index, batch.builder().BytesOf(block.block, batch.output()));
      continue;
    }
    ++failed;
    // A block that the CPU decodes is not damaged: the device is.
    const Result<BlockPtr> now = blocks_.Get(*block.tensor, block.index, BlockCache::Use::kPrefetch, /*wait=*/false);
    if (now.ok() && *now != nullptr)
      batch.Distrust(BlockName(*block.tensor, block.index) + " decodes on the CPU, but not on the GPU");
  }
  batch.Report(decoded_bytes, failed);
}

}  // namespace modelstore
