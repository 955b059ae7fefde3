#include "catalog/write/file_reader.h"

#include <algorithm>
#include <map>
#include <set>
#include <span>

#include "catalog/write/tensor_data.h"
#include "codec/decode/block_decoder.h"

namespace modelstore {
namespace {

constexpr size_t kMaxPieces = 4096;  // of a window: bounds what many tiny tensors take

template <typename T>
Result<T> Opened(Result<T> opened) {
  if (!opened.ok() && opened.status().code() == StatusCode::kNotFound)
    return Corruption("a record is missing: " + std::string(opened.status().message()));
  return opened;
}

// Follows a file's bytes through its extents and checks the hash of each tensor that it holds in full.
class ExtentHasher {
 public:
  ExtentHasher(ReadEngine& reader, const FileRecord& record)
      : reader_(reader), record_(record), in_full_(TensorsInFull(record)) {}

  Status Update(ByteSpan bytes) {
    while (true) {
      RETURN_IF_ERROR(FinishExtents());
      if (bytes.empty() || next_ == record_.extents.size()) return OkStatus();
      const Extent& extent = record_.extents[next_];
      const size_t n = std::min<uint64_t>(bytes.size(), extent.bytes - done_);
      RETURN_IF_ERROR(Hash(extent, bytes.first(n)));
      done_ += n;
      bytes = bytes.subspan(n);
    }
  }

 private:
  // The next bytes of the extent; the tensor's hash begins with its first ones.
  Status Hash(const Extent& extent, ByteSpan bytes) {
    if (extent.kind == Extent::Kind::kLiteral || !in_full_.contains(extent.tensor)) return OkStatus();
    if (extent.offset_bytes + done_ == 0) {
      ASSIGN_OR_RETURN(const TensorRef tensor, Opened(reader_.OpenTensorById(extent.tensor)));
      if (tensor->record.bytes != in_full_.at(extent.tensor)) {
        in_full_.erase(extent.tensor);
        return OkStatus();
      }
      hashers_.insert_or_assign(extent.tensor, StartTensorHash(tensor->record.dtype, tensor->record.shape));
    }
    hashers_.at(extent.tensor).Update(bytes);
    return OkStatus();
  }

  Status FinishExtents() {
    for (; next_ < record_.extents.size() && done_ == record_.extents[next_].bytes; ++next_, done_ = 0) {
      const Extent& extent = record_.extents[next_];
      if (extent.bytes == 0) {
        if (extent.kind != Extent::Kind::kTensor) continue;
        RETURN_IF_ERROR(Hash(extent, {}));
      }
      const auto hasher = hashers_.find(extent.tensor);
      if (hasher == hashers_.end() || extent.offset_bytes + extent.bytes != in_full_.at(extent.tensor)) continue;
      const bool is_same = hasher->second.Finish() == extent.tensor.hash;
      hashers_.erase(hasher);
      if (!is_same) return Corruption("tensor '" + extent.name + "' decodes to bytes of another hash than its own");
    }
    return OkStatus();
  }

  ReadEngine& reader_;
  const FileRecord& record_;
  std::map<TensorId, uint64_t> in_full_;
  std::map<TensorId, Hasher128> hashers_;  // of those that have begun
  size_t next_ = 0;
  uint64_t done_ = 0;  // bytes of extent next_
};

// The next bytes of a file: (a part of) a block of a tensor, or a literal.
struct Piece {
  const Extent* extent = nullptr;
  TensorRef tensor;  // null: a literal
  uint32_t block = 0;
  uint64_t begin = 0;              // in the block
  uint64_t offset = 0, bytes = 0;  // in the window

  bool SameBlock(const Piece& other) const {
    return tensor != nullptr && tensor == other.tensor && block == other.block;
  }
};

// Cuts a file's extents into pieces, from front to back.
class PieceCursor {
 public:
  PieceCursor(ReadEngine& reader, const FileRecord& record) : reader_(reader), record_(record) {}

  // Pieces of the next window, of `window_bytes` together unless a single one has more; none at the end.
  Status Next(uint64_t window_bytes, std::vector<Piece>* pieces) {
    pieces->clear();
    for (uint64_t filled = 0; next_ < record_.extents.size() && pieces->size() < kMaxPieces;) {
      const Extent& extent = record_.extents[next_];
      if (done_ == extent.bytes) {
        ++next_;
        done_ = 0;
        continue;
      }
      Piece piece;
      piece.extent = &extent;
      piece.offset = filled;
      piece.bytes = extent.bytes;
      if (extent.kind != Extent::Kind::kLiteral) RETURN_IF_ERROR(FindBlock(extent, &piece));
      if (!pieces->empty() && piece.bytes > window_bytes - std::min(window_bytes, filled)) break;
      done_ += piece.bytes;
      filled += piece.bytes;
      pieces->push_back(std::move(piece));
    }
    return OkStatus();
  }

 private:
  // The block of byte done_ of the extent.
  Status FindBlock(const Extent& extent, Piece* piece) {
    if (tensor_ == nullptr || tensor_->id != extent.tensor) {
      ASSIGN_OR_RETURN(tensor_, Opened(reader_.OpenTensorById(extent.tensor)));
    }
    const uint64_t tensor_bytes = tensor_->record.bytes;
    if (extent.kind == Extent::Kind::kTensor
            ? extent.bytes != tensor_bytes
            : extent.offset_bytes > tensor_bytes || extent.bytes > tensor_bytes - extent.offset_bytes)
      return Corruption("tensor '" + extent.name + "' has " + std::to_string(tensor_bytes) + " bytes, expected " +
                        std::to_string(extent.bytes) + " at " + std::to_string(extent.offset_bytes));
    const Frame& frame = tensor_->frame;
    const uint64_t block_bytes = uint64_t{frame.block_elems} * DTypeBytes(frame.dtype);
    const uint64_t at = extent.offset_bytes + done_;
    piece->tensor = tensor_;
    piece->block = static_cast<uint32_t>(at / block_bytes);
    piece->begin = at % block_bytes;
    piece->bytes = std::min(extent.bytes - done_, BlockBytes(frame, piece->block) - piece->begin);
    return OkStatus();
  }

  ReadEngine& reader_;
  const FileRecord& record_;
  size_t next_ = 0;    // extent
  uint64_t done_ = 0;  // bytes of it
  TensorRef tensor_;   // of the last extent that had one
};

// Of all windows of one file. Several files may be read at once, one a thread.
uint64_t WindowBytes(Catalog& catalog) {
  const uint64_t threads = catalog.pool().threads() + 1;
  const uint64_t share = catalog.write_budget_bytes() / (4 * threads);
  return std::clamp<uint64_t>(share, kBlockBytes, 4 * kBlockBytes * threads);
}

}  // namespace

std::map<TensorId, uint64_t> TensorsInFull(const FileRecord& record) {
  std::map<TensorId, uint64_t> tensors;  // their bytes so far
  std::set<TensorId> in_disorder;
  for (const Extent& extent : record.extents) {
    if (extent.kind == Extent::Kind::kLiteral) continue;
    if (extent.kind == Extent::Kind::kTensorPart && extent.bytes == 0) continue;
    const auto [it, is_new] = tensors.try_emplace(extent.tensor, 0);
    const bool is_again = extent.kind == Extent::Kind::kTensor && it->second == extent.bytes;
    if (!is_again && it->second != extent.offset_bytes) in_disorder.insert(extent.tensor);
    it->second = extent.offset_bytes + extent.bytes;
  }
  for (const TensorId& id : in_disorder) tensors.erase(id);
  return tensors;
}

Status ReadWholeFile(Catalog& catalog, const Sha256Digest& sha256, JobControl& job,
                     const std::function<Status(ByteSpan)>& consume) {
  ReadEngine& reader = catalog.reader();
  ASSIGN_OR_RETURN(const FileRef file, Opened(reader.OpenFileByHash(sha256)));
  const uint64_t window_bytes = WindowBytes(catalog) / 2;
  Sha256 sha;
  ExtentHasher extents(reader, file->record());
  PieceCursor cursor(reader, file->record());
  std::vector<Piece> pieces;
  std::vector<size_t> starts;  // of each task
  Buffer windows[2];
  ByteSpan previous;
  // One round more than there are windows: each decodes its window and consumes the one before.
  for (uint64_t round = 0;; ++round) {
    RETURN_IF_ERROR(job.Check());
    RETURN_IF_ERROR(cursor.Next(window_bytes, &pieces));
    if (pieces.empty() && previous.empty()) break;
    const MutableByteSpan window =
        windows[round % 2].Resize(pieces.empty() ? 0 : pieces.back().offset + pieces.back().bytes);
    // Neighbours in one block are one task.
    starts.clear();
    for (size_t i = 0; i < pieces.size(); ++i)
      if (i == 0 || !pieces[i].SameBlock(pieces[i - 1])) starts.push_back(i);
    const auto work = [&](size_t task) -> Status {
      if (task == 0) {
        sha.Update(previous);
        RETURN_IF_ERROR(extents.Update(previous));
        return consume(previous);
      }
      const Piece& first = pieces[starts[task - 1]];
      BlockRef block;
      if (first.tensor != nullptr) {
        ASSIGN_OR_RETURN(block, reader.ReadBlock(first.tensor, first.block, /*keep=*/false));
      }
      const size_t end = task < starts.size() ? starts[task] : pieces.size();
      for (const Piece& piece : std::span(pieces).subspan(starts[task - 1], end - starts[task - 1])) {
        const ByteSpan bytes = piece.tensor == nullptr ? ByteSpan(piece.extent->literal) : block.bytes();
        if (piece.bytes > bytes.size() - std::min<uint64_t>(piece.begin, bytes.size()))
          return Corruption("a piece of " + std::to_string(bytes.size()) + " bytes, expected " +
                            std::to_string(piece.begin + piece.bytes));
        std::copy_n(bytes.begin() + piece.begin, piece.bytes, window.begin() + piece.offset);
      }
      return OkStatus();
    };
    RETURN_IF_ERROR(catalog.pool().ParallelFor(starts.size() + 1, work));
    job.Advance(previous.size());
    previous = window;
  }
  RETURN_IF_ERROR(extents.Update({}));
  if (const Sha256Digest found = sha.Finish(); found != sha256)
    return Corruption("its SHA-256 is " + ToHex(found) + ", expected " + ToHex(sha256));
  return OkStatus();
}

}  // namespace modelstore
