#include "catalog/derive/source_checkpoint.h"

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "catalog/write/missing_shards.h"
#include "codec/tensor/checkpoint_index.h"
#include "codec/tensor/safetensors.h"

namespace modelstore {
namespace {

constexpr std::string_view kSafetensors = ".safetensors";
constexpr uint64_t kMaxJsonBytes = 16 << 20;
constexpr std::string_view kAdapterConfig = "adapter_config.json", kAdapterWeights = "adapter_model.safetensors";
constexpr std::array<std::string_view, 9> kOtherWeights = {".bin",  ".pt", ".pth",     ".gguf",  ".onnx",
                                                           ".ckpt", ".h5", ".msgpack", ".tflite"};

std::string_view BaseName(std::string_view path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

Result<SourceCheckpoint> SourceCheckpoint::Open(Catalog& catalog, const ModelRecord& model) {
  SourceCheckpoint checkpoint(catalog, model);
  RETURN_IF_ERROR(checkpoint.OpenParts());
  RETURN_IF_ERROR(checkpoint.CheckNames());
  return checkpoint;
}

Status SourceCheckpoint::OpenParts() {
  const auto depth = [](const std::string& path) { return std::ranges::count(path, '/'); };
  const ModelFile* uppermost = nullptr;
  for (const std::string_view kind : {kConfigFile, kSafetensors}) {
    for (const ModelFile& file : model_->files) {
      if (kind == kConfigFile ? BaseName(file.path) != kConfigFile : !file.path.ends_with(kind)) continue;
      if (uppermost == nullptr || depth(file.path) < depth(uppermost->path)) uppermost = &file;
    }
    if (uppermost != nullptr) break;
  }
  if (uppermost == nullptr)
    return Unsupported("'" + model_->name + "' has no safetensors files; variants are made of checkpoints that have");
  folder_ = uppermost->path.substr(0, uppermost->path.size() - BaseName(uppermost->path).size());

  for (const ModelFile& file : model_->files) {
    Part& part = parts_.emplace_back();
    part.file = &file;
    ASSIGN_OR_RETURN(FileRef opened, catalog_->reader().OpenFileByHash(file.sha256));
    part.stored = std::make_shared<const StoredFile>(std::move(opened));
  }
  std::optional<std::set<std::string>> listed;
  if (const Part* index = Find(kIndexFile)) {
    ASSIGN_OR_RETURN(const Bytes text, ReadAll(*index));
    const Result<std::set<std::string>> named = IndexedFiles(text);
    if (!named.ok()) return BadSource(named.status()).WithContext(model_->name + "/" + index->file->path);
    listed = *named;
    std::set<std::string> missing;
    for (const std::string& name : *listed) {
      if (Find(name) == nullptr) missing.insert(name);
    }
    if (!missing.empty())
      return Unsupported("'" + model_->name + "' is not complete: its " + std::string(kIndexFile) + " names " +
                         ShortList(missing) +
                         ", which its folder has not; complete the source and push it again with --update");
  }
  for (Part& part : parts_) {
    const std::string name = NameInFolder(part);
    if (!name.ends_with(kSafetensors) || (listed && !listed->contains(name))) continue;
    ASSIGN_OR_RETURN(part.header, ReadHeader(part));
    part.is_weights = true;
  }
  if (std::ranges::none_of(parts_, &Part::is_weights))
    return Unsupported("'" + model_->name + "' has no safetensors files beside its config.json");
  return OkStatus();
}

Status SourceCheckpoint::CheckNames() const {
  std::set<std::string_view> unique;
  for (const Part& part : parts_) {
    for (const HeaderTensor& tensor : part.header.tensors) {
      if (!unique.insert(tensor.name).second)
        return Unsupported("'" + model_->name + "' has two tensors named '" + tensor.name +
                           "' and no index that says which one counts");
    }
  }
  return OkStatus();
}

std::vector<std::string> SourceCheckpoint::TensorNames() const {
  std::vector<std::string> names;
  for (const Part& part : parts_) {
    for (const HeaderTensor& tensor : part.header.tensors) names.push_back(tensor.name);
  }
  return names;
}

const SourceCheckpoint::Part* SourceCheckpoint::Find(std::string_view name) const {
  const auto part = std::ranges::find_if(parts_, [&](const Part& p) { return NameInFolder(p) == name; });
  return part == parts_.end() ? nullptr : &*part;
}

std::string SourceCheckpoint::NameInFolder(const Part& part) const {
  const std::string& path = part.file->path;
  if (!path.starts_with(folder_) || path.find('/', folder_.size()) != std::string::npos) return "";
  return path.substr(folder_.size());
}

Status SourceCheckpoint::ReadFront(const Part& part, MutableByteSpan out) const {
  ASSIGN_OR_RETURN(const size_t read, catalog_->reader().Read(part.stored->file, 0, out));
  return read == out.size() ? OkStatus() : Corruption(part.file->path + ": the stored file ends early");
}

Result<Bytes> SourceCheckpoint::ReadAll(const Part& part) const {
  if (part.file->bytes > kMaxJsonBytes)
    return Unsupported(part.file->path + ": " + std::to_string(part.file->bytes) + " bytes are too many");
  Bytes out(part.file->bytes);
  RETURN_IF_ERROR(ReadFront(part, out));
  return out;
}

Result<SafetensorsHeader> SourceCheckpoint::ReadHeader(const Part& part) const {
  const std::string name = model_->name + "/" + part.file->path;
  Status read;
  const Result<Bytes> bytes =
      LoadSafetensorsHeader(part.file->bytes, [&](MutableByteSpan out) { return read = ReadFront(part, out); });
  RETURN_IF_ERROR(read.WithContext(name));
  if (!bytes.ok()) return BadSource(bytes.status()).WithContext(name);
  Result<SafetensorsHeader> header = ReadSafetensorsHeader(*bytes, part.file->bytes);
  if (!header.ok()) return header.status().WithContext(name);
  return header;
}

bool SourceCheckpoint::IsOtherWeights(const Part& part) const {
  const std::string& path = part.file->path;
  if (part.is_weights) return false;
  // An adapter without its weights would be looked for in vain.
  if (NameInFolder(part) == kAdapterConfig) {
    const Part* adapter = Find(kAdapterWeights);
    return adapter == nullptr || !adapter->is_weights;
  }
  return path.ends_with(kSafetensors) || path.ends_with(".bin.index.json") ||
         std::ranges::any_of(kOtherWeights, [&](std::string_view kind) { return path.ends_with(kind); });
}

SourceFile SourceCheckpoint::FileLike(const Part& part, std::shared_ptr<const DerivedContent> content,
                                      const std::string& shown_in) {
  SourceFile file;
  file.path = part.file->path;
  file.shown_as = shown_in + "/" + part.file->path;
  file.bytes = content->bytes();
  file.mode = part.file->mode;
  file.gid = part.file->gid;
  file.mtime_ns = part.file->mtime_ns;
  file.content = std::move(content);
  return file;
}

}  // namespace modelstore
