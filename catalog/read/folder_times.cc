#include "catalog/read/folder_times.h"

#include "catalog/schema/folder_record.h"

namespace modelstore {

Result<int64_t> FolderTime(const KvStore& store, std::string_view path) {
  const auto value = store.Get(Family::kMeta, FolderKey(path));
  if (!value.ok()) {
    if (value.status().code() == StatusCode::kNotFound) return 0;
    return value.status().WithContext("folder " + std::string(path));
  }
  const auto record = ParseFolderRecord(value->bytes());
  if (!record.ok()) return record.status().WithContext("folder " + std::string(path));
  return record->changed_ns;
}

Result<std::map<std::string, int64_t, std::less<>>> ListFolderTimes(const KvStore& store) {
  std::map<std::string, int64_t, std::less<>> times;
  RETURN_IF_ERROR(store.Scan(Family::kMeta, kFolderPrefix, [&](std::string_view key, ByteSpan value) -> Status {
    const std::string path(key.substr(kFolderPrefix.size()));
    const auto record = ParseFolderRecord(value);
    if (!record.ok()) return record.status().WithContext("folder " + path);
    times.emplace(path, record->changed_ns);
    return OkStatus();
  }));
  return times;
}

}  // namespace modelstore
