#include <nlohmann/json.hpp>

#include "catalog/write/push.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {
namespace {

// Paths are for callers whose rights are this process's own; others pass what they opened.
Result<SourceTree> ScanPath(const Parameters& parameters) {
  const Result<std::string> path = parameters.String("path");
  if (!path.ok()) return path.status();
  if (!path->starts_with('/')) return InvalidArgument("path '" + *path + "' is not absolute");
  Result<SourceTree> scanned = SourceTree::Scan(*path);
  // The words were right, what they name cannot be stored.
  if (scanned.status().code() == StatusCode::kInvalidArgument)
    return Unsupported(std::string(scanned.status().message()));
  return scanned;
}

}  // namespace

Result<std::string> HandlePush(Catalog& catalog, const Request& request) {
  const Caller& caller = *request.caller;
  RETURN_IF_ERROR(caller.CheckMayPush());
  ASSIGN_OR_RETURN(const Parameters parameters,
                   Parameters::Parse(request.parameters, {"path", "name", "base", "fidelity", "update"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name", ""));
  ASSIGN_OR_RETURN(const std::string base, parameters.String("base", "auto"));
  ASSIGN_OR_RETURN(const std::string fidelity, parameters.String("fidelity", "exact"));
  ASSIGN_OR_RETURN(const bool update, parameters.Bool("update", false));
  if (fidelity != "exact") return Unsupported("fidelity '" + fidelity + "': this build stores models exactly only");

  SourceTree scanned;
  if (request.source == nullptr) {
    ASSIGN_OR_RETURN(scanned, ScanPath(parameters));
  }
  const SourceTree& source = request.source == nullptr ? scanned : *request.source;
  PushOptions options;
  options.name = name.empty() ? source.default_name() : name;
  options.owner_uid = caller.uid;
  options.update = update;
  options.may_replace = [&](const ModelRecord& replaced) { return caller.CheckMayChange(replaced); };
  options.may_use_as_base = [&](const ModelRecord& model) { return caller.CheckMaySee(model); };
  if (base == "none") {
    options.base = PushOptions::Base::kNone;
  } else if (base != "auto") {
    options.base = PushOptions::Base::kNamed;
    options.base_name = base;
  }
  ASSIGN_OR_RETURN(const PushReport report, Push(catalog, source, options, *request.job));

  // Any tensor may serve as a base; whose it is, only those learn who may see that model.
  const Result<ModelRecord> base_model = report.base.empty() ? NotFound("") : catalog.FindModel(report.base);
  nlohmann::ordered_json out;
  out["name"] = report.name;
  out["base"] = base_model.ok() && caller.MaySee(*base_model) ? nlohmann::ordered_json(report.base) : nullptr;
  out["fidelity"] = "exact";
  out["files"] = source.files().size();
  out["logical_bytes"] = report.logical_bytes;
  out["stored_bytes"] = report.stored_bytes;
  out["seconds"] = report.seconds;
  out["verified"] = report.verified;
  out["levels"] = {{"identical_file", report.identical_file_bytes},
                   {"identical_tensor", report.identical_tensor_bytes},
                   {"self", report.self_bytes},
                   {"delta", report.delta_bytes},
                   {"raw", report.raw_bytes},
                   {"content", report.content_bytes},
                   {"compact", 0}};
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace modelstore
