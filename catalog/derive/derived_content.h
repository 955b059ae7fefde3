// A virtual file: new bytes and ranges of stored and spooled files, one after the other (layer: catalog/derive).
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "catalog/derive/spool.h"
#include "catalog/read/read_engine.h"
#include "catalog/write/push.h"

namespace modelstore {

// A stored file that is open, and where its extents begin. Immutable.
struct StoredFile {
  explicit StoredFile(FileRef opened);

  FileRef file;                  // keeps prune from what it needs
  std::vector<uint64_t> begins;  // of each extent of its record
};

// The stored tensor, or the part of one, that bytes [begin, begin + bytes) of the file are, when they are just that.
std::optional<SourceContent::Place> PlaceIn(const StoredFile& stored, uint64_t begin, uint64_t bytes);

// Built by Append, then read only. Reading is thread-safe. `reader` outlives the object.
class DerivedContent : public SourceContent {
 public:
  explicit DerivedContent(ReadEngine& reader) : reader_(reader) {}

  void Append(Bytes bytes);
  // Bytes [begin, begin + bytes) of a stored file.
  void Append(std::shared_ptr<const StoredFile> file, uint64_t begin, uint64_t bytes);
  // `projection`: what computes them, if it is to be stored instead.
  void Append(std::shared_ptr<const Spool> spool, uint64_t begin, uint64_t bytes,
              std::optional<Projection> projection = std::nullopt);
  uint64_t bytes() const { return pieces_.empty() ? 0 : pieces_.back().begin + pieces_.back().bytes; }

  // Errors: Corruption, Io (of the store).
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override;
  // Where a piece of a stored file is one extent of it.
  std::optional<Place> PlaceOf(uint64_t offset, uint64_t bytes) const override;
  std::optional<Projection> ProjectionOf(uint64_t offset, uint64_t bytes) const override;

 private:
  struct Piece {
    uint64_t begin = 0, bytes = 0;  // here
    Bytes literal{};
    std::shared_ptr<const StoredFile> file{};  // else null
    std::shared_ptr<const Spool> spool{};      // else null
    uint64_t from = 0;                         // in either
    std::optional<Projection> projection{};
  };
  void Add(Piece piece);
  std::vector<Piece>::const_iterator PieceAt(uint64_t offset) const;

  ReadEngine& reader_;
  std::vector<Piece> pieces_;
};

}  // namespace modelstore
