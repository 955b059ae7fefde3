#include "catalog/schema/folder_record.h"

namespace modelstore {
namespace {

constexpr uint8_t kFolderVersion = 1;

}  // namespace

Bytes Serialize(const FolderRecord& record) {
  ByteWriter out;
  out.U8(kFolderVersion);
  out.U64(static_cast<uint64_t>(record.changed_ns));
  return out.Release();
}

Result<FolderRecord> ParseFolderRecord(ByteSpan bytes) {
  ByteReader in(bytes);
  const uint8_t version = in.U8();
  if (in.ok() && version != kFolderVersion)
    return Unsupported("folder record of version " + std::to_string(version) + "; use a newer modelstore");
  FolderRecord record;
  record.changed_ns = static_cast<int64_t>(in.U64());
  if (!in.AtEnd()) return Corruption("folder record of " + std::to_string(bytes.size()) + " bytes, expected 9");
  return record;
}

std::string FolderKey(std::string_view path) { return std::string(kFolderPrefix).append(path); }

std::vector<std::string> FoldersAbove(std::string_view name) {
  std::vector<std::string> folders = {""};
  for (size_t slash = name.find('/'); slash != std::string_view::npos; slash = name.find('/', slash + 1))
    folders.emplace_back(name.substr(0, slash));
  return folders;
}

}  // namespace modelstore
