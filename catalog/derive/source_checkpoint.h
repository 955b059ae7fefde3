// A stored checkpoint in the hub's format, opened: what variants are made of (layer: catalog/derive; private).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "catalog/derive/checkpoint_files.h"
#include "catalog/derive/derived_content.h"
#include "catalog/read/catalog.h"
#include "catalog/write/push.h"

namespace modelstore {

inline constexpr std::string_view kConfigFile = "config.json", kIndexFile = "model.safetensors.index.json";

// The checkpoint is where the uppermost config.json is, or without one, the uppermost safetensors file. Its weights are
// the files of its index, or all that it has without one.
class SourceCheckpoint {
 public:
  struct Part {
    const ModelFile* file = nullptr;
    std::shared_ptr<const StoredFile> stored;
    SafetensorsHeader header{};  // of weights
    bool is_weights = false;
  };

  // Errors: Unsupported (no checkpoint; one that contradicts itself, or is not complete), Corruption (the store), Io.
  static Result<SourceCheckpoint> Open(Catalog& catalog, const ModelRecord& model);

  const ModelRecord& model() const { return *model_; }
  const std::vector<Part>& parts() const { return parts_; }
  // All tensors, in the order of files and bytes.
  std::vector<std::string> TensorNames() const;
  // A file of the checkpoint's folder by its name there; null when there is none.
  const Part* Find(std::string_view name) const;
  // The name of a file of the checkpoint's folder; else "".
  std::string NameInFolder(const Part& part) const;
  // A small file's content. Errors: Unsupported (a large one), Corruption (the store), Io.
  Result<Bytes> ReadAll(const Part& part) const;
  // Weights of the whole model besides `is_weights`, and what is nothing without them: they would contradict a variant.
  bool IsOtherWeights(const Part& part) const;
  // As the part, with other content. `shown_in`: the variant's name.
  static SourceFile FileLike(const Part& part, std::shared_ptr<const DerivedContent> content,
                             const std::string& shown_in);
  // The path of a new file in the checkpoint's folder.
  std::string PathOf(std::string_view name) const { return folder_ + std::string(name); }

 private:
  SourceCheckpoint(Catalog& catalog, const ModelRecord& model) : catalog_(&catalog), model_(&model) {}
  Status OpenParts();
  Status CheckNames() const;
  Status ReadFront(const Part& part, MutableByteSpan out) const;
  Result<SafetensorsHeader> ReadHeader(const Part& part) const;

  Catalog* catalog_;
  const ModelRecord* model_;
  std::string folder_;  // in the model; "" or with a '/' at its end
  std::vector<Part> parts_;
};

}  // namespace modelstore
