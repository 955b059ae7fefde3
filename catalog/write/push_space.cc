// Whether what is pushed fits on the disk (push_job.h), asked before anything is written.
#include <algorithm>
#include <cmath>

#include "catalog/write/push_job.h"
#include "codec/decode/block_decoder.h"
#include "codec/support/files.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

// Records, logs and file system metadata that coded bytes bring along.
constexpr uint64_t kSpaceMarginBytes = 4 << 20;
// Blocks of plain content that are coded to estimate the rest, evenly spread.
constexpr uint64_t kSampledBlocks = 32;
constexpr uint64_t kHashWindowBytes = 1 << 18;

// What is left of an estimate when it is taken for as wrong as it may be: nothing is refused that may fit.
constexpr uint64_t AtLeast(uint64_t estimate) { return estimate - estimate / 16; }

// Bytes that the blocks of what is no floating-point tensor take, from some of them: the mean less two standard errors.
Result<uint64_t> EstimateContent(const TensorData& data) {
  const SourceExtent& extent = data.extent();
  ASSIGN_OR_RETURN(const BlockEncoder encoder,
                   FrameBuilder(PlanTensor(extent.dtype, extent.elems(), {}, DType::kOpaque, {})).Finish());
  const Frame& frame = encoder.frame();
  const uint64_t blocks = frame.BlockCount(), sampled = std::min(blocks, kSampledBlocks);
  Buffer scratch;
  Bytes coded;
  double sum = 0, squares = 0;
  for (uint64_t i = 0; i < sampled; ++i) {
    const uint32_t index = static_cast<uint32_t>(i * blocks / sampled);
    ASSIGN_OR_RETURN(const ByteSpan source,
                     data.Read(frame.BlockBegin(index) * DTypeBytes(frame.dtype), BlockBytes(frame, index), &scratch));
    RETURN_IF_ERROR(encoder.Encode(index, source, {}, &coded));
    const double bytes = static_cast<double>(coded.size() + kBlockHeaderBytes);
    sum += bytes;
    squares += bytes * bytes;
  }
  if (sampled == blocks) return static_cast<uint64_t>(sum);
  const double n = static_cast<double>(sampled), mean = sum / n;
  const double error = 2 * std::sqrt(std::max(0.0, squares / n - mean * mean) / n);
  return static_cast<uint64_t>(std::max(0.0, mean - error) * static_cast<double>(blocks));
}

Result<Hash128> HashOf(const TensorData& data, const JobControl& job) {
  const SourceExtent& extent = data.extent();
  Hasher128 hasher = StartTensorHash(extent.dtype, extent.shape);
  Buffer scratch;
  for (uint64_t at = 0; at < extent.bytes; at += kHashWindowBytes) {
    RETURN_IF_ERROR(job.Check());
    ASSIGN_OR_RETURN(const ByteSpan window, data.Read(at, std::min(kHashWindowBytes, extent.bytes - at), &scratch));
    hasher.Update(window);
  }
  return hasher.Finish();
}

}  // namespace

Result<bool> PushJob::HasRoomFor(uint64_t bytes) const {
  if (catalog_.dir().empty()) return true;
  ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeBytes(catalog_.dir()));
  return free_bytes >= bytes + kSpaceMarginBytes;
}

Status PushJob::CheckSpace() {
  ASSIGN_OR_RETURN(const bool has_room, HasRoomFor(source_.total_bytes()));
  if (has_room) return OkStatus();
  ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeBytes(catalog_.dir()));
  // What is stored already, or twice in the source, is looked for only when all together is too much.
  for (const bool only_new : {false, true}) {
    ASSIGN_OR_RETURN(const uint64_t estimate, EstimateStoredBytes(only_new));
    const uint64_t need = AtLeast(estimate) + kSpaceMarginBytes;
    if (need <= free_bytes) return OkStatus();
    if (only_new)
      return NoSpace("storing '" + options_.name + "' takes about " + Megabytes(need) + ", " + catalog_.dir() +
                     " has " + Megabytes(free_bytes) + " free: " + Megabytes(need - free_bytes) +
                     " are missing; free space there (rm and prune may help) and push again");
  }
  return OkStatus();
}

// Only when space is short: chooses for every extent without coding it. `only_new`: reads everything, to leave out what
// need not be stored.
Result<uint64_t> PushJob::EstimateStoredBytes(bool only_new) {
  std::vector<PlannedExtent*> extents;
  uint64_t bytes = 0;
  for (PlannedFile& file : files_) {
    for (PlannedExtent& extent : file.extents) {
      if (!extent.needs_coding() || extent.source.bytes == 0) continue;
      extents.push_back(&extent);
      bytes += extent.source.bytes;
    }
  }
  job_.Begin("estimating", bytes);
  std::set<Hash128> seen;
  std::atomic<uint64_t> total{0};
  const auto estimate = [&](size_t i) -> Status {
    RETURN_IF_ERROR(job_.Check());
    const SourceExtent& source = extents[i]->source;
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(*extents[i]->file->source));
    Buffer hold;
    ASSIGN_OR_RETURN(const TensorData data, TensorData::Load(reader, source, 0, &hold));
    bool is_new = true;
    if (only_new) {
      ASSIGN_OR_RETURN(const Hash128 hash, HashOf(data, job_));
      std::vector<TensorId> stored;
      RETURN_IF_ERROR(StoredOfHash(hash, &stored));
      const MutexLock lock(mutex_);
      is_new = seen.insert(hash).second && stored.empty();
    }
    uint64_t own = 0;
    if (is_new && !DTypeIsFloat(source.dtype)) {
      ASSIGN_OR_RETURN(own, EstimateContent(data));
    } else if (is_new) {
      ASSIGN_OR_RETURN(const std::optional<SketchRecord> sketch, MakeSketch(data));
      std::vector<BaseCandidate> candidates;
      if (sketch && bases_->may_use_bases()) {
        ASSIGN_OR_RETURN(candidates, bases_->ByContent(source, *sketch));
      }
      ASSIGN_OR_RETURN(const BaseChoice choice, bases_->Choose(data, candidates));
      own = choice.plan.estimated_bytes;
    }
    total += own;
    job_.Advance(source.bytes);
    return OkStatus();
  };
  RETURN_IF_ERROR(lanes_->Run(extents.size(), estimate));
  return total.load();
}

}  // namespace modelstore
