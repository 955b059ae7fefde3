#include "catalog/store/kv_store.h"

#include <array>

namespace modelstore {

// Names are on disk: never rename.
std::string_view FamilyName(Family family) {
  constexpr std::array<std::string_view, kFamilyCount> kNames = {"meta",   "models", "files",   "tensors",
                                                                 "blocks", "edges",  "sketches"};
  const auto i = static_cast<size_t>(family);
  return i < kNames.size() ? kNames[i] : "unknown";
}

void WriteBatch::Put(Family family, std::string_view key, ByteSpan value) {
  put_bytes_ += key.size() + value.size();
  ops_.push_back({Op::Kind::kPut, family, std::string(key), std::string(AsChars(value))});
}

void WriteBatch::Delete(Family family, std::string_view key) {
  ops_.push_back({Op::Kind::kDelete, family, std::string(key), {}});
}

void WriteBatch::DeleteRange(Family family, std::string_view begin, std::string_view end) {
  ops_.push_back({Op::Kind::kDeleteRange, family, std::string(begin), std::string(end)});
}

}  // namespace modelstore
