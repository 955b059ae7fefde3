#include "catalog/write/file_layout.h"

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

SourceExtent OpaqueExtent(uint64_t begin, uint64_t bytes) {
  SourceExtent extent;
  extent.begin = begin;
  extent.bytes = bytes;
  extent.shape = {bytes};
  return extent;
}

Status AppendGap(const SourceReader& source, uint64_t begin, uint64_t end, std::vector<SourceExtent>* extents) {
  if (begin == end) return OkStatus();
  SourceExtent gap = OpaqueExtent(begin, end - begin);
  if (gap.bytes <= kMaxInlineLiteral) {
    gap.literal.resize(gap.bytes);
    RETURN_IF_ERROR(source.ReadAt(begin, gap.literal));
  }
  extents->push_back(std::move(gap));
  return OkStatus();
}

// Errors: Corruption when the header breaks the format; Io.
Result<FileLayout> LayOutSafetensors(const SourceReader& source) {
  const uint64_t file_bytes = source.file().bytes;
  ASSIGN_OR_RETURN(const Bytes header,
                   LoadSafetensorsHeader(file_bytes, [&](MutableByteSpan out) { return source.ReadAt(0, out); }));
  ASSIGN_OR_RETURN(TensorIndex index, ParseSafetensorsHeader(header, file_bytes));

  FileLayout layout;
  layout.kind = FileKind::kSafetensors;
  layout.extents.reserve(index.tensors.size() + 1);
  layout.extents.push_back(OpaqueExtent(0, header.size()));
  uint64_t covered = header.size();
  for (TensorEntry& entry : index.tensors) {
    RETURN_IF_ERROR(AppendGap(source, covered, entry.begin, &layout.extents));
    SourceExtent& extent = layout.extents.emplace_back(OpaqueExtent(entry.begin, entry.end - entry.begin));
    extent.name = std::move(entry.name);
    if (entry.dtype != DType::kOpaque) {
      extent.dtype = entry.dtype;
      extent.shape = std::move(entry.shape);
    }
    covered = entry.end;
  }
  RETURN_IF_ERROR(AppendGap(source, covered, file_bytes, &layout.extents));
  return layout;
}

}  // namespace

Result<FileLayout> LayOutFile(const SourceReader& source, JobControl& job) {
  const SourceFile& file = source.file();
  if (file.path.ends_with(".safetensors")) {
    Result<FileLayout> layout = LayOutSafetensors(source);
    if (layout.ok() || layout.status().code() != StatusCode::kCorruption) return layout;
    job.Warn(file.shown_as + ": " + std::string(layout.status().message()) + "; stored as plain content");
  }
  FileLayout content;
  if (file.bytes > 0) content.extents.push_back(OpaqueExtent(0, file.bytes));
  return content;
}

}  // namespace modelstore
