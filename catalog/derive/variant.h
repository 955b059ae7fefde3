// What a variant is made of, to be pushed, and what to call it (layer: catalog/derive; private).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "catalog/derive/source_checkpoint.h"
#include "codec/support/job_control.h"

namespace modelstore {

struct Variant {
  std::vector<SourceFile> files;
  std::string recipe;
};

// How a variant's files differ from its source's.
struct FileChanges {
  // Appends what becomes of a file of weights, nothing when none stay, and lists its tensors.
  std::function<Status(const SourceCheckpoint::Part& part, std::map<std::string, IndexEntry>* index,
                       DerivedContent* content)>
      weights;
  std::function<Result<Bytes>(ByteSpan config)> config;
  // Of files beside it that IsLayerSettings names; null: they stay as they are.
  std::function<Result<Bytes>(std::string_view file, ByteSpan text)> settings = nullptr;
};

// The files of variant `name`: changed weights, configuration and index, and the others as they are, but for weights of
// the whole model in other formats, which are left out with a warning. Errors: what the changes answer; Unsupported,
// Corruption, Io (the store).
Result<std::vector<SourceFile>> MakeVariantFiles(Catalog& catalog, const SourceCheckpoint& source,
                                                 const std::string& name, const FileChanges& changes, JobControl& job);

}  // namespace modelstore
