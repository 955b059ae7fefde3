#include "catalog/write/file_layout.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr size_t kShownBytes = 64;  // of a file's beginning tell what it is

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

// What lies instead of a safetensors file under such a name; "" when it cannot be told.
std::string_view WhatItIs(std::string_view begin) {
  constexpr std::pair<std::string_view, std::string_view> kKinds[] = {
      {"version https://git-lfs.github.com/spec/",
       "a git-lfs pointer, not the file it stands for (git lfs pull gets it)"},
      {"<!doctype html", "an HTML page, as of a download that failed"},
      {"<html", "an HTML page, as of a download that failed"},
      {"<?xml", "an XML document, as of a download that failed"},
      {"<error", "an XML document, as of a download that failed"},
      {"{", "a JSON document, as of a download that failed"},
      {"pk\x03\x04", "a zip archive, as torch.save writes"},
      {"\x80\x02", "a pickle, as torch.save writes"},
      {"gguf", "a GGUF file"},
      {"\x1f\x8b", "gzip-compressed"}};
  std::string lower(begin.substr(std::min(begin.find_first_not_of(" \t\r\n"), begin.size())));
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const auto& [start, kind] : kKinds) {
    if (lower.starts_with(start)) return kind;
  }
  const bool is_empty = begin.find_first_not_of('\0') == std::string_view::npos;
  return begin.empty() ? "an empty file"
         : is_empty    ? "a file that begins with zeros, as of a download that broke off"
                       : "";
}

}  // namespace

Result<FileLayout> LayOutFile(const SourceReader& source, JobControl& job) {
  const SourceFile& file = source.file();
  std::array<std::byte, kShownBytes> buffer;
  const MutableByteSpan begin = MutableByteSpan(buffer).first(std::min<uint64_t>(file.bytes, buffer.size()));
  RETURN_IF_ERROR(source.ReadAt(0, begin));
  const bool is_called_so = file.path.ends_with(kSuffix);
  const bool may_be = MayBeSafetensors(begin.first(std::min<size_t>(begin.size(), kSafetensorsProbeBytes)), file.bytes);
  if (is_called_so || may_be) {
    Result<FileLayout> layout = LayOutSafetensors(source);
    if (layout.ok() || layout.status().code() != StatusCode::kCorruption) return layout;
    if (is_called_so) {
      const std::string_view kind = may_be ? "" : WhatItIs(AsChars(begin));
      job.Warn(file.shown_as + ": " +
               (kind.empty() ? std::string(layout.status().message()) : "this is " + std::string(kind)) +
               "; stored as plain content");
    }
  }
  FileLayout content;
  if (file.bytes > 0) content.extents.push_back(OpaqueExtent(0, file.bytes));
  return content;
}

}  // namespace modelstore
