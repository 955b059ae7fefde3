#include "catalog/write/compact_model.h"

#include <algorithm>

namespace modelstore {
namespace {

bool SameContent(const ModelRecord& a, const ModelRecord& b) {
  return a.id == b.id && a.push == b.push && a.fidelity == b.fidelity &&
         std::equal(a.files.begin(), a.files.end(), b.files.begin(), b.files.end(),
                    [](const ModelFile& x, const ModelFile& y) { return x.path == y.path && x.sha256 == y.sha256; });
}

}  // namespace

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
