#include "catalog/read/file_table.h"

#include <set>
#include <string>
#include <utility>

namespace modelstore {

Result<FileRef> FileTable::Open(const Sha256Digest& sha256) {
  {
    const MutexLock lock(files_mutex_);
    if (const auto it = files_.find(sha256); it != files_.end()) {
      if (FileRef file = it->second.lock()) return file;
    }
  }
  const ReaderLock opening(opens_mutex_);
  ASSIGN_OR_RETURN(FileRef opened, Load(sha256));
  const MutexLock lock(files_mutex_);
  std::weak_ptr<OpenFile>& slot = files_[sha256];
  if (FileRef other = slot.lock()) return other;
  slot = opened;
  if (files_.size() > sweep_at_) {
    std::erase_if(files_, [](const auto& entry) { return entry.second.expired(); });
    sweep_at_ = 64 + 2 * files_.size();
  }
  return opened;
}

Result<FileRef> FileTable::Load(const Sha256Digest& sha256) const {
  auto value = store_.Get(Family::kFiles, FileKey(sha256));
  if (!value.ok()) {
    if (value.status().code() == StatusCode::kNotFound)
      return NotFound(OpenFile::NameOf(sha256) + ": the store has no such file");
    return value.status().WithContext(OpenFile::NameOf(sha256));
  }
  auto record = ParseFileRecord(value->bytes());
  if (!record.ok()) return record.status().WithContext(OpenFile::NameOf(sha256));
  return OpenFile::Create(sha256, std::move(*record));
}

void FileTable::Forget(const Sha256Digest& sha256) {
  // A thread that has read the old record is done with opening then, and its file is in `files_`.
  const WriterLock opens(opens_mutex_);
  const MutexLock lock(files_mutex_);
  std::erase_if(replaced_, [](const auto& file) { return file.expired(); });
  const auto it = files_.find(sha256);
  if (it == files_.end()) return;
  replaced_.push_back(it->second);
  files_.erase(it);
}

Result<Geometry> FileTable::GeometryOfExtent(OpenFile& file, size_t extent) {
  const ExtentGeometry& known = file.geometry(extent);
  if (!known.is_known()) {
    ASSIGN_OR_RETURN(const TensorRef tensor, TensorOf(file, extent));
    return GeometryOf(*tensor);
  }
  return known.Get(file.record().extents[extent].tensor);
}

Result<TensorRef> FileTable::TensorOf(OpenFile& file, size_t extent_index) {
  const Extent& extent = file.record().extents[extent_index];
  auto tensor = tensors_.GetReferenced(extent.tensor);
  if (!tensor.ok()) return tensor.status().WithContext(file.Name());
  const uint64_t bytes = (*tensor)->record.bytes;
  const bool fits = extent.kind == Extent::Kind::kTensor
                        ? extent.bytes == bytes
                        : extent.offset_bytes <= bytes && extent.bytes <= bytes - extent.offset_bytes;
  if (!fits) {
    return Corruption(file.Name() + ": extent " + std::to_string(extent_index) + " wants " +
                      std::to_string(extent.bytes) + " bytes at " + std::to_string(extent.offset_bytes) + " of " +
                      TensorName(extent.tensor) + ", which has " + std::to_string(bytes));
  }
  file.geometry(extent_index).Set(GeometryOf(**tensor));
  return tensor;
}

std::vector<TensorId> FileTable::PinnedTensors() const {
  std::vector<FileRef> open;
  {
    const MutexLock lock(files_mutex_);
    for (const auto& [sha256, weak] : files_) {
      if (FileRef file = weak.lock()) open.push_back(std::move(file));
    }
    for (const std::weak_ptr<OpenFile>& weak : replaced_) {
      if (FileRef file = weak.lock()) open.push_back(std::move(file));
    }
  }
  std::set<TensorId> pinned;
  std::vector<TensorId> to_visit;
  const auto pin = [&](const TensorId& id) {
    if (pinned.insert(id).second) to_visit.push_back(id);
  };
  for (const FileRef& file : open) {
    for (const Extent& extent : file->record().extents) {
      if (extent.kind != Extent::Kind::kLiteral) pin(extent.tensor);
    }
  }
  while (!to_visit.empty()) {
    const TensorId id = to_visit.back();
    to_visit.pop_back();
    // A record that cannot be read names no bases; its tensor cannot be read either.
    const Result<TensorRecord> record = LoadTensorRecord(store_, id);
    if (!record.ok()) continue;
    ForEachReference(*record, pin);
  }
  return {pinned.begin(), pinned.end()};
}

}  // namespace modelstore
