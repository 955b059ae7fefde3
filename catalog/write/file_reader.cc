#include "catalog/write/file_reader.h"

#include <algorithm>
#include <optional>

#include "catalog/write/parallel.h"
#include "catalog/write/tensor_data.h"

namespace modelstore {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;  // of one task

// Follows a file's bytes through its extents and checks each whole tensor's hash.
class ExtentHasher {
 public:
  ExtentHasher(ReadEngine& reader, const FileRecord& record) : reader_(reader), record_(record) {}

  Status Update(ByteSpan bytes) {
    while (true) {
      RETURN_IF_ERROR(FinishExtents());
      if (bytes.empty() || next_ == record_.extents.size()) return OkStatus();
      const Extent& extent = record_.extents[next_];
      const size_t n = std::min<uint64_t>(bytes.size(), extent.bytes - done_);
      if (extent.kind == Extent::Kind::kTensor) {
        if (done_ == 0) RETURN_IF_ERROR(Start(extent));
        hasher_->Update(bytes.first(n));
      }
      done_ += n;
      bytes = bytes.subspan(n);
    }
  }

 private:
  Status Start(const Extent& extent) {
    ASSIGN_OR_RETURN(const TensorRef tensor, reader_.OpenTensorById(extent.tensor));
    hasher_.emplace(StartTensorHash(tensor->record.dtype, tensor->record.shape));
    return OkStatus();
  }

  Status FinishExtents() {
    for (; next_ < record_.extents.size() && done_ == record_.extents[next_].bytes; ++next_, done_ = 0) {
      const Extent& extent = record_.extents[next_];
      if (extent.kind != Extent::Kind::kTensor) continue;
      if (extent.bytes == 0) RETURN_IF_ERROR(Start(extent));
      if (hasher_->Finish() != extent.tensor.hash)
        return Corruption("tensor '" + extent.name + "' decodes to bytes of another hash than its own");
    }
    return OkStatus();
  }

  ReadEngine& reader_;
  const FileRecord& record_;
  size_t next_ = 0;
  uint64_t done_ = 0;  // bytes of extent next_
  std::optional<Hasher128> hasher_;
};

}  // namespace

Status ReadWholeFile(Catalog& catalog, const Sha256Digest& sha256, JobControl& job,
                     const std::function<Status(ByteSpan)>& consume) {
  ReadEngine& reader = catalog.reader();
  Result<FileRef> opened = reader.OpenFileByHash(sha256);
  if (!opened.ok() && opened.status().code() == StatusCode::kNotFound)
    return Corruption("a record is missing: " + std::string(opened.status().message()));
  ASSIGN_OR_RETURN(const FileRef file, std::move(opened));
  const uint64_t bytes = file->bytes();
  const uint64_t window_bytes = kPieceBytes * (catalog.pool().threads() + 1) * 2;
  Sha256 sha;
  ExtentHasher extents(reader, file->record());
  Buffer windows[2];
  ByteSpan previous;
  // One round more than there are windows: each decodes its window and consumes the one before.
  for (uint64_t at = 0, round = 0; at < bytes || !previous.empty(); at += window_bytes, ++round) {
    RETURN_IF_ERROR(job.Check());
    const MutableByteSpan window = windows[round % 2].Resize(at < bytes ? std::min(window_bytes, bytes - at) : 0);
    const size_t pieces = (window.size() + kPieceBytes - 1) / kPieceBytes;
    const auto work = [&](size_t task) -> Status {
      if (task == 0) {
        sha.Update(previous);
        RETURN_IF_ERROR(extents.Update(previous));
        return consume(previous);
      }
      const uint64_t offset = (task - 1) * kPieceBytes;
      const MutableByteSpan piece = window.subspan(offset, std::min(kPieceBytes, window.size() - offset));
      ASSIGN_OR_RETURN(const size_t n, reader.Read(file, at + offset, piece));
      if (n != piece.size())
        return Corruption("expected " + std::to_string(bytes) + " bytes, found " + std::to_string(at + offset + n));
      return OkStatus();
    };
    RETURN_IF_ERROR(ParallelRun(catalog.pool(), pieces + 1, work));
    job.Advance(previous.size());
    previous = window;
  }
  RETURN_IF_ERROR(extents.Update({}));
  if (const Sha256Digest found = sha.Finish(); found != sha256)
    return Corruption("its SHA-256 is " + ToHex(found) + ", expected " + ToHex(sha256));
  return OkStatus();
}

}  // namespace modelstore
