#include "catalog/derive/derived_content.h"

#include <algorithm>

namespace modelstore {

StoredFile::StoredFile(FileRef opened) : file(std::move(opened)) {
  uint64_t at = 0;
  for (const Extent& extent : file->record().extents) {
    begins.push_back(at);
    at += extent.bytes;
  }
}

void DerivedContent::Append(Bytes bytes) {
  Piece piece{.bytes = bytes.size()};
  piece.literal = std::move(bytes);
  Add(std::move(piece));
}

void DerivedContent::Append(std::shared_ptr<const StoredFile> file, uint64_t begin, uint64_t bytes) {
  Add({.bytes = bytes, .file = std::move(file), .from = begin});
}

void DerivedContent::Append(std::shared_ptr<const Spool> spool, uint64_t begin, uint64_t bytes,
                            std::optional<Projection> projection) {
  Add({.bytes = bytes, .spool = std::move(spool), .from = begin, .projection = std::move(projection)});
}

void DerivedContent::Add(Piece piece) {
  if (piece.bytes == 0) return;
  piece.begin = bytes();
  pieces_.push_back(std::move(piece));
}

std::vector<DerivedContent::Piece>::const_iterator DerivedContent::PieceAt(uint64_t offset) const {
  return std::upper_bound(pieces_.begin(), pieces_.end(), offset,
                          [](uint64_t at, const Piece& piece) { return at < piece.begin + piece.bytes; });
}

Status DerivedContent::ReadAt(uint64_t offset, MutableByteSpan out) const {
  for (auto piece = PieceAt(offset); !out.empty(); ++piece) {
    if (piece == pieces_.end()) return Internal("a derived file was read behind its end");
    const uint64_t inside = offset - piece->begin;
    const uint64_t bytes = std::min<uint64_t>(out.size(), piece->bytes - inside);
    if (piece->spool != nullptr) {
      RETURN_IF_ERROR(piece->spool->Read(piece->from + inside, out.first(bytes)));
    } else if (piece->file == nullptr) {
      std::copy_n(piece->literal.begin() + static_cast<ptrdiff_t>(inside), bytes, out.begin());
    } else {
      ASSIGN_OR_RETURN(const size_t read, reader_.Read(piece->file->file, piece->from + inside, out.first(bytes)));
      if (read != bytes) return Corruption("a stored file ends early");
    }
    offset += bytes;
    out = out.subspan(bytes);
  }
  return OkStatus();
}

std::optional<SourceContent::Place> PlaceIn(const StoredFile& stored, uint64_t begin, uint64_t bytes) {
  // Behind extents of 0 bytes there.
  const auto next = std::upper_bound(stored.begins.begin(), stored.begins.end(), begin);
  if (bytes == 0 || next == stored.begins.begin()) return std::nullopt;
  const auto index = static_cast<size_t>(next - stored.begins.begin()) - 1;
  const Extent& extent = stored.file->record().extents[index];
  if (stored.begins[index] != begin || extent.bytes != bytes || extent.kind == Extent::Kind::kLiteral)
    return std::nullopt;
  return SourceContent::Place{.tensor = extent.tensor,
                              .is_part = extent.kind == Extent::Kind::kTensorPart,
                              .offset_bytes = extent.offset_bytes};
}

std::optional<SourceContent::Place> DerivedContent::PlaceOf(uint64_t offset, uint64_t bytes) const {
  const auto piece = PieceAt(offset);
  if (piece == pieces_.end() || piece->file == nullptr) return std::nullopt;
  if (bytes > piece->bytes - (offset - piece->begin)) return std::nullopt;
  return PlaceIn(*piece->file, piece->from + (offset - piece->begin), bytes);
}

std::optional<SourceContent::Projection> DerivedContent::ProjectionOf(uint64_t offset, uint64_t bytes) const {
  const auto piece = PieceAt(offset);
  if (piece == pieces_.end() || piece->begin != offset || piece->bytes != bytes) return std::nullopt;
  return piece->projection;
}

}  // namespace modelstore
