#include "catalog/derive/variant.h"

#include "catalog/derive/layer_config.h"

namespace modelstore {

Result<std::vector<SourceFile>> MakeVariantFiles(Catalog& catalog, const SourceCheckpoint& source,
                                                 const std::string& name, const FileChanges& changes, JobControl& job) {
  std::vector<SourceFile> files;
  std::map<std::string, IndexEntry> index;
  const auto add = [&](const SourceCheckpoint::Part& part, std::shared_ptr<const DerivedContent> content) {
    files.push_back(SourceCheckpoint::FileLike(part, std::move(content), name));
  };
  // Weights first: the index is of them all.
  for (const SourceCheckpoint::Part& part : source.parts()) {
    if (!part.is_weights) continue;
    auto content = std::make_shared<DerivedContent>(catalog.reader());
    RETURN_IF_ERROR(changes.weights(part, &index, content.get()));
    if (content->bytes() > 0) add(part, std::move(content));
  }
  for (const SourceCheckpoint::Part& part : source.parts()) {
    if (part.is_weights) continue;
    const std::string in_folder = source.NameInFolder(part);
    auto content = std::make_shared<DerivedContent>(catalog.reader());
    if (in_folder == kConfigFile || in_folder == kIndexFile) {
      ASSIGN_OR_RETURN(const Bytes text, source.ReadAll(part));
      ASSIGN_OR_RETURN(Bytes rewritten, in_folder == kConfigFile ? changes.config(text) : RewriteIndex(text, index));
      content->Append(std::move(rewritten));
    } else if (source.IsOtherWeights(part)) {
      job.Warn(part.file->path + ": of the whole model's weights, left out of the variant");
      continue;
    } else if (changes.settings && IsLayerSettings(in_folder)) {
      ASSIGN_OR_RETURN(const Bytes text, source.ReadAll(part));
      ASSIGN_OR_RETURN(Bytes rewritten, changes.settings(in_folder, text));
      content->Append(std::move(rewritten));
    } else {
      content->Append(part.stored, 0, part.file->bytes);
    }
    add(part, std::move(content));
  }
  return files;
}

}  // namespace modelstore
