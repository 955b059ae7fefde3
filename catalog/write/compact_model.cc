#include "catalog/write/compact_model.h"

#include <algorithm>
#include <utility>

namespace modelstore {
namespace {

class StoredContent : public SourceContent {
 public:
  StoredContent(Catalog& catalog, FileRef file) : catalog_(catalog), file_(std::move(file)) {}
  Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    ASSIGN_OR_RETURN(const size_t read, catalog_.reader().Read(file_, offset, out));
    return read == out.size() ? OkStatus() : Corruption("the stored file ends early");
  }

 private:
  Catalog& catalog_;
  const FileRef file_;  // keeps prune from what it needs
};

bool SameContent(const ModelRecord& a, const ModelRecord& b) {
  return a.id == b.id && a.push == b.push && a.fidelity == b.fidelity &&
         std::equal(a.files.begin(), a.files.end(), b.files.begin(), b.files.end(),
                    [](const ModelFile& x, const ModelFile& y) { return x.path == y.path && x.sha256 == y.sha256; });
}

}  // namespace

Result<SourceTree> SourceTree::OfModel(Catalog& catalog, const ModelRecord& model) {
  SourceTree tree;
  tree.default_name_ = model.name;
  for (const ModelFile& file : model.files) {
    SourceFile& added = tree.files_.emplace_back();
    added.path = file.path;
    added.shown_as = model.name + "/" + file.path;
    added.bytes = file.bytes;
    added.mode = file.mode;
    added.gid = file.gid;
    added.mtime_ns = file.mtime_ns;
    ASSIGN_OR_RETURN(FileRef opened, catalog.reader().OpenFileByHash(file.sha256));
    added.content = std::make_shared<StoredContent>(catalog, std::move(opened));
  }
  return tree;
}

Result<PushReport> CompactModel(Catalog& catalog, const PushOptions& options, JobControl& job) {
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(options.name));
  const auto check = [&](const ModelRecord& now) -> Status {
    if (options.may_replace) RETURN_IF_ERROR(options.may_replace(now));
    if (now.fidelity == Fidelity::kCompact) return Unsupported("'" + now.name + "' is compact already");
    if (now.derived)
      return Unsupported("'" + now.name +
                         "' is derived and costs little already; make the model that it is made of compact, " +
                         "and derive it anew");
    if (!SameContent(now, model))
      return Busy("'" + now.name + "' was replaced while it was made compact; nothing was changed, try again");
    if (catalog.IsBase(now.id))
      return HasDependents("'" + now.name + "' is the base of other models: a compact model can be the base of none");
    return OkStatus();
  };
  RETURN_IF_ERROR(check(model));
  ASSIGN_OR_RETURN(const SourceTree source, SourceTree::OfModel(catalog, model));
  PushOptions push = options;
  push.update = true;
  push.owner_uid = model.owner_uid;
  push.not_against = model.name;
  push.may_replace = check;
  push.compact->or_exact = false;
  return Push(catalog, source, push, job);
}

}  // namespace modelstore
