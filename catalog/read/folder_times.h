// When models left the folders that they were in (layer: catalog/read). Free functions over a store.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "catalog/store/kv_store.h"
#include "codec/support/status.h"

namespace modelstore {

// When a model below the folder ("" for the topmost) was removed or renamed last, ns since 1970; 0 when none was since
// there are models in it. Errors: Corruption, Unsupported, Io.
Result<int64_t> FolderTime(const KvStore& store, std::string_view path);
// The same of all folders that a model left.
Result<std::map<std::string, int64_t, std::less<>>> ListFolderTimes(const KvStore& store);

}  // namespace modelstore
