#include "catalog/write/missing_shards.h"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>

#include "catalog/write/source_reader.h"
#include "codec/tensor/checkpoint_index.h"

namespace modelstore {
namespace {

constexpr std::string_view kIndexSuffix = ".index.json";
constexpr uint64_t kMaxIndexBytes = 16 << 20;  // larger ones are nobody's index
constexpr size_t kMaxShown = 5;

}  // namespace

std::string ShortList(const std::set<std::string>& names) {
  std::string text;
  size_t shown = 0;
  for (const std::string& name : names) {
    if (shown++ == kMaxShown) return text + " and " + std::to_string(names.size() - kMaxShown) + " more";
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

Status WarnOfMissingShards(const SourceTree& source, JobControl& job) {
  for (const SourceFile& file : source.files()) {
    if (!file.path.ends_with(kIndexSuffix) || file.bytes > kMaxIndexBytes) continue;
    ASSIGN_OR_RETURN(const SourceReader reader, SourceReader::Open(file));
    Bytes text(file.bytes);
    RETURN_IF_ERROR(reader.ReadAt(0, text));
    const Result<std::set<std::string>> named = IndexedFiles(text);
    if (!named.ok()) {
      job.Warn(file.shown_as + ": " + std::string(named.status().message()) + "; stored as it is");
      continue;
    }
    const std::string folder = file.path.substr(0, file.path.rfind('/') + 1);
    std::set<std::string> missing;
    for (const std::string& name : *named) {
      const auto found = std::ranges::lower_bound(source.files(), folder + name, {}, &SourceFile::path);
      if (found == source.files().end() || found->path != folder + name) missing.insert(name);
    }
    if (missing.empty()) continue;
    job.Warn(file.shown_as + " names " + std::to_string(missing.size()) + (missing.size() == 1 ? " file" : " files") +
             " that the model has not: " + ShortList(missing) +
             "; stored as it is, push it with --update when it is complete");
  }
  return OkStatus();
}

}  // namespace modelstore
