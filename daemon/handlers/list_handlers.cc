#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "catalog/write/report.h"
#include "codec/json/json_text.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

Json NullIfEmpty(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json Levels(const LevelBytes& levels) {
  return {{"identical_file", levels.identical_file},
          {"identical_tensor", levels.identical_tensor},
          {"self", levels.self},
          {"delta", levels.delta},
          {"raw", levels.raw},
          {"content", levels.content},
          {"compact", levels.compact},
          {"projected", levels.projected}};
}

// RFC 3339 in UTC.
std::string Timestamp(int64_t ns) {
  const std::time_t seconds = static_cast<std::time_t>(ns / 1'000'000'000);
  std::tm utc{};
  char text[40];
  if (gmtime_r(&seconds, &utc) == nullptr) return "";
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc));
}

// The names that a caller may see all the time that it lives. A document is made in between: what was renamed or
// replaced meanwhile, from hidden or to it, is in neither list under a name that the document could show.
class VisibleNames {
 public:
  static Result<VisibleNames> Of(const Caller& caller, Catalog& catalog) {
    VisibleNames out;
    RETURN_IF_ERROR(out.Narrow(caller, catalog));
    return out;
  }
  // To those that may be seen now too.
  Status Narrow(const Caller& caller, Catalog& catalog) {
    if (caller.administrator) return OkStatus();
    ASSIGN_OR_RETURN(const std::vector<ModelRecord> models, catalog.ListModels());
    std::set<std::string> now;
    for (const ModelRecord& model : models)
      if (caller.MaySee(model) && Has(model.name)) now.insert(model.name);
    names_ = std::move(now);
    return OkStatus();
  }
  bool Has(const std::string& name) const { return !names_ || names_->contains(name); }

 private:
  std::optional<std::set<std::string>> names_;  // null: all
};

// Without the models that the caller may not see, and their names.
Result<StoreReport> ReportFor(const Caller& caller, Catalog& catalog) {
  ASSIGN_OR_RETURN(VisibleNames visible, VisibleNames::Of(caller, catalog));
  ASSIGN_OR_RETURN(StoreReport report, MakeReport(catalog));
  RETURN_IF_ERROR(visible.Narrow(caller, catalog));
  std::erase_if(report.models, [&](const ModelUsage& model) { return !visible.Has(model.name); });
  for (ModelUsage& model : report.models)
    if (!visible.Has(model.base)) model.base.clear();
  return report;
}

Json Usage(const ModelUsage& model) {
  Json out;
  out["name"] = model.name;
  out["kind"] = model.kind;
  out["fidelity"] = model.fidelity;
  if (!model.drift_kind.empty()) {
    out["drift"] = model.drift;
    out["drift_kind"] = model.drift_kind;
    if (!model.method.empty()) out["method"] = model.method;
  }
  if (!model.recipe.empty()) out["recipe"] = model.recipe;
  if (model.allow_compact) out["allow_compact"] = true;
  out["base"] = NullIfEmpty(model.base);
  out["files"] = model.files;
  out["logical_bytes"] = model.logical_bytes;
  out["stored_bytes"] = model.stored_bytes;
  out["shared_bytes"] = model.shared_bytes;
  out["created"] = Timestamp(model.created_ns);
  return out;
}

}  // namespace

Result<std::string> HandleLs(Catalog& catalog, const Request& request) {
  RETURN_IF_ERROR(Parameters::Parse(request.parameters, {}).status());
  ASSIGN_OR_RETURN(const StoreReport report, ReportFor(*request.caller, catalog));
  Json models = Json::array();
  for (const ModelUsage& model : report.models) models.push_back(Usage(model));
  Json out;
  out["models"] = std::move(models);
  return JsonText(out);
}

Result<std::string> HandleShow(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"name"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name"));
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
  RETURN_IF_ERROR(request.caller->CheckMaySee(model));
  ASSIGN_OR_RETURN(VisibleNames visible, VisibleNames::Of(*request.caller, catalog));
  ASSIGN_OR_RETURN(ModelDetail detail,
                   DescribeModel(catalog, name, [&](const ModelRecord& described, const ModelFile& file) {
                     return request.caller->MayReadFile(described, file);
                   }));
  RETURN_IF_ERROR(visible.Narrow(*request.caller, catalog));
  if (!visible.Has(name)) return NoModelNamed(name);  // replaced by one that is hidden, or gone, meanwhile
  if (!visible.Has(detail.usage.base)) detail.usage.base.clear();
  Json out = Usage(detail.usage);
  out["levels"] = Levels(detail.usage.levels);
  Json files = Json::array();
  for (const FileUsage& file : detail.files) {
    Json tensors = Json::array();
    for (const TensorUsage& tensor : file.tensors) {
      const bool base_is_hidden = !visible.Has(tensor.base_model);
      tensors.push_back({{"name", tensor.name},
                         {"dtype", tensor.dtype},
                         {"shape", tensor.shape},
                         {"encoding", tensor.encoding},
                         {"base", base_is_hidden ? Json(nullptr) : NullIfEmpty(tensor.base_model)},
                         {"base_tensor", base_is_hidden ? Json(nullptr) : NullIfEmpty(tensor.base_tensor)},
                         {"logical_bytes", tensor.logical_bytes},
                         {"stored_bytes", tensor.stored_bytes}});
      if (tensor.encoding != "compact") continue;
      tensors.back()["rank"] = tensor.rank;
      tensors.back()["residual"] = tensor.has_residual;
      tensors.back()["drift"] = tensor.drift;
    }
    files.push_back({{"path", file.path},
                     {"kind", file.kind},
                     {"sha256", file.sha256},
                     {"logical_bytes", file.logical_bytes},
                     {"stored_bytes", file.stored_bytes},
                     {"tensors", std::move(tensors)}});
  }
  out["files"] = std::move(files);
  if (detail.files_left_out != 0) out["unreadable_files"] = detail.files_left_out;
  return JsonText(out);
}

Result<std::string> HandleReport(Catalog& catalog, const Request& request) {
  RETURN_IF_ERROR(Parameters::Parse(request.parameters, {}).status());
  ASSIGN_OR_RETURN(const StoreReport report, ReportFor(*request.caller, catalog));
  Json out;
  out["logical_bytes"] = report.logical_bytes;
  out["stored_bytes"] = report.stored_bytes;
  out["disk_bytes"] = report.disk_bytes;
  out["saved_fraction"] = report.saved_fraction;
  out["prunable_bytes"] = report.prunable_bytes;
  out["levels"] = Levels(report.levels);
  Json models = Json::array();
  for (const ModelUsage& model : report.models) {
    models.push_back(Usage(model));
    models.back()["levels"] = Levels(model.levels);
  }
  out["models"] = std::move(models);
  return JsonText(out);
}

}  // namespace modelstore
