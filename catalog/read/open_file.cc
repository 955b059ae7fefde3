#include "catalog/read/open_file.h"

#include <utility>

namespace modelstore {

OpenFile::OpenFile(const Sha256Digest& sha256, FileRecord record, std::vector<uint64_t> begins)
    : sha256_(sha256),
      record_(std::move(record)),
      begins_(std::move(begins)),
      geometries_(std::make_unique<ExtentGeometry[]>(record_.extents.size())) {}

Result<FileRef> OpenFile::Create(const Sha256Digest& sha256, FileRecord record) {
  std::vector<uint64_t> begins;
  begins.reserve(record.extents.size());
  uint64_t at = 0;
  for (const Extent& extent : record.extents) {
    begins.push_back(at);
    if (extent.bytes > record.bytes - at ||
        (extent.kind == Extent::Kind::kLiteral && extent.literal.size() != extent.bytes))
      return Corruption(NameOf(sha256) + ": extent " + std::to_string(begins.size() - 1) +
                        " does not fit the file of " + std::to_string(record.bytes) + " bytes");
    at += extent.bytes;
  }
  if (at != record.bytes)
    return Corruption(NameOf(sha256) + ": its extents cover " + std::to_string(at) + " of " +
                      std::to_string(record.bytes) + " bytes");
  return FileRef(new OpenFile(sha256, std::move(record), std::move(begins)));
}

}  // namespace modelstore
