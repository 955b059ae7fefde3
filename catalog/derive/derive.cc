#include "catalog/derive/derive.h"

#include <optional>

#include "catalog/derive/layer_chop.h"
#include "catalog/derive/slice.h"
#include "catalog/derive/source_checkpoint.h"

namespace modelstore {
namespace {

Status Check(const DeriveOptions& options) {
  const int ways = !options.drop_layers.empty() + !options.keep_layers.empty() + options.slice.has_value();
  if (ways != 1) return InvalidArgument("say what the variant is made of: --drop-layers, --keep-layers or --slice");
  if (options.name == options.source) return InvalidArgument("a variant needs another name than its source");
  if (options.moments != nullptr && options.moments->files().size() != 1)
    return InvalidArgument("moments: expected one file");
  return OkStatus();
}

}  // namespace

Result<PushReport> Derive(Catalog& catalog, const DeriveOptions& options, JobControl& job) {
  RETURN_IF_ERROR(Check(options));
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(options.source));
  if (options.may_read) RETURN_IF_ERROR(options.may_read(model));
  ASSIGN_OR_RETURN(const SourceCheckpoint source, SourceCheckpoint::Open(catalog, model));
  std::optional<MomentsFile> moments;
  if (options.moments != nullptr) {
    ASSIGN_OR_RETURN(moments, MomentsFile::Open(options.moments->files().front()));
  }
  const MomentsFile* given = moments ? &*moments : nullptr;
  ASSIGN_OR_RETURN(Variant variant, options.slice ? Slice(catalog, source, options, given, job)
                                                  : ChopLayers(catalog, source, options, given, job));
  if (model.derived) variant.recipe += ", from: " + model.method;
  if (variant.recipe.size() > kMaxMethodBytes) variant.recipe = variant.recipe.substr(0, kMaxMethodBytes - 3) + "...";

  PushOptions push;
  push.name = options.name;
  push.base = PushOptions::Base::kNone;
  push.owner_uid = options.owner_uid;
  push.update = options.update;
  push.derivation = Derivation{model, std::move(variant.recipe)};
  push.may_replace = options.may_replace;
  return Push(catalog, SourceTree::OfContent(options.name, std::move(variant.files)), push, job);
}

}  // namespace modelstore
