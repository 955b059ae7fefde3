// Folders of models: when a model left one (layer: catalog/schema). docs/format.md is the specification.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/bytes.h"
#include "codec/support/status.h"

namespace modelstore {

// When a model below a folder of models was removed or renamed last (family meta, key FolderKey(path)).
struct FolderRecord {
  int64_t changed_ns = 0;
};
inline constexpr std::string_view kFolderPrefix = "folder/";

Bytes Serialize(const FolderRecord& record);
Result<FolderRecord> ParseFolderRecord(ByteSpan bytes);

std::string FolderKey(std::string_view path);  // kFolderPrefix and the path

// The folders that a model of this name is in, the topmost ("") first: "", "a" and "a/b" for "a/b/c".
std::vector<std::string> FoldersAbove(std::string_view name);

}  // namespace modelstore
