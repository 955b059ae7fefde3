#include <nlohmann/json.hpp>

#include "catalog/write/maintain.h"
#include "codec/json/json_text.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

Result<std::string> HandleRename(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"from", "to"}));
  ASSIGN_OR_RETURN(const std::string from, parameters.String("from"));
  ASSIGN_OR_RETURN(const std::string to, parameters.String("to"));
  RETURN_IF_ERROR(Rename(catalog, from, to, *request.job,
                         [&](const ModelRecord& model) { return request.caller->CheckMayChange(model); }));
  return JsonText(Json({{"name", to}, {"previous_name", from}}));
}

Result<std::string> HandleRm(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"name", "dry_run"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name"));
  ASSIGN_OR_RETURN(const bool dry_run, parameters.Bool("dry_run", false));
  const auto may_change = [&](const ModelRecord& model) { return request.caller->CheckMayChange(model); };
  const auto may_see = [&](const ModelRecord& model) { return request.caller->MaySee(model); };
  ASSIGN_OR_RETURN(const RemoveReport report, Remove(catalog, name, dry_run, *request.job, may_change, may_see));
  return JsonText(Json({{"models", report.models}, {"freed_bytes", report.freed_bytes}, {"dry_run", dry_run}}));
}

Result<std::string> HandlePrune(Catalog& catalog, const Request& request) {
  RETURN_IF_ERROR(request.caller->CheckMayPush());
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"dry_run"}));
  ASSIGN_OR_RETURN(const bool dry_run, parameters.Bool("dry_run", false));
  ASSIGN_OR_RETURN(const PruneReport report, Prune(catalog, dry_run, *request.job));
  return JsonText(Json({{"freed_bytes", report.freed_bytes},
                        {"tensors", report.tensors},
                        {"files", report.files},
                        {"blocks", report.blocks},
                        {"disk_bytes_before", report.disk_bytes_before},
                        {"disk_bytes_after", report.disk_bytes_after},
                        {"dry_run", dry_run}}));
}

}  // namespace modelstore
