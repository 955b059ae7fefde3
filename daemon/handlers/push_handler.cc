#include <nlohmann/json.hpp>

#include "catalog/write/compact_model.h"
#include "codec/json/json_text.h"
#include "daemon/handlers/compact_parameters.h"
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

PushOptions OptionsFor(const Caller& caller, const std::string& base) {
  PushOptions options;
  options.owner_uid = caller.uid;
  options.may_replace = [&caller](const ModelRecord& replaced) { return caller.CheckMayChange(replaced); };
  options.may_use_as_base = [&caller](const ModelRecord& model) {
    return caller.CheckMayReadAll(model, "it can be named as a base by who may");
  };
  if (base == "none") {
    options.base = PushOptions::Base::kNone;
  } else if (base != "auto") {
    options.base = PushOptions::Base::kNamed;
    options.base_name = base;
  }
  return options;
}

}  // namespace

std::string PushDocument(Catalog& catalog, const Caller& caller, const PushReport& report, size_t files) {
  // Any tensor may serve as a base; whose it is, only those learn who may see that model.
  const Result<ModelRecord> base_model = report.base.empty() ? NotFound("") : catalog.FindModel(report.base);
  const bool is_compact = report.fidelity == Fidelity::kCompact;
  nlohmann::ordered_json out;
  out["name"] = report.name;
  out["base"] = base_model.ok() && caller.MaySee(*base_model) ? nlohmann::ordered_json(report.base) : nullptr;
  out["fidelity"] = is_compact ? "compact" : "exact";
  if (is_compact) {
    out["drift"] = report.drift;
    out["drift_kind"] = report.drift_kind == DriftKind::kMoments ? "moments" : "plain";
    out["method"] = report.method;
  }
  if (!report.recipe.empty()) out["recipe"] = report.recipe;
  out["files"] = files;
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
                   {"compact", report.compact_bytes},
                   {"projected", report.projected_bytes}};
  return JsonText(out);
}

Result<std::string> HandlePush(Catalog& catalog, const Request& request) {
  const Caller& caller = *request.caller;
  RETURN_IF_ERROR(caller.CheckMayPush());
  ASSIGN_OR_RETURN(const Parameters parameters,
                   Parameters::Parse(request.parameters,
                                     {"path", "name", "base", "fidelity", "update", "allow_compact"}, kCompactKeys));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name", ""));
  ASSIGN_OR_RETURN(const std::string base, parameters.String("base", "auto"));
  ASSIGN_OR_RETURN(const std::string fidelity, parameters.String("fidelity", "exact"));
  PushOptions options = OptionsFor(caller, base);
  ASSIGN_OR_RETURN(options.update, parameters.Bool("update", false));
  ASSIGN_OR_RETURN(options.allow_compact, parameters.Bool("allow_compact", false));
  ASSIGN_OR_RETURN(CompactOptions compact, ParseCompactOptions(parameters, request.moments));
  if (fidelity == "compact") {
    options.compact = std::move(compact);
  } else if (fidelity != "exact") {
    return InvalidArgument("fidelity '" + fidelity + "': expected exact or compact");
  }

  SourceTree scanned;
  if (request.source == nullptr) {
    ASSIGN_OR_RETURN(scanned, ScanPath(parameters));
  }
  const SourceTree& source = request.source == nullptr ? scanned : *request.source;
  options.name = name.empty() ? source.default_name() : name;
  ASSIGN_OR_RETURN(const PushReport report, Push(catalog, source, options, *request.job));
  if (request.on_pushed) request.on_pushed(report);
  return PushDocument(catalog, caller, report, source.files().size());
}

Result<std::string> HandleCompact(Catalog& catalog, const Request& request) {
  const Caller& caller = *request.caller;
  RETURN_IF_ERROR(caller.CheckMayPush());
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"name", "base"}, kCompactKeys));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name"));
  ASSIGN_OR_RETURN(const std::string base, parameters.String("base", "auto"));
  PushOptions options = OptionsFor(caller, base);
  options.name = name;
  ASSIGN_OR_RETURN(options.compact, ParseCompactOptions(parameters, request.moments));
  ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
  RETURN_IF_ERROR(caller.CheckMayChange(model));
  ASSIGN_OR_RETURN(const PushReport report, CompactModel(catalog, options, *request.job));
  return PushDocument(catalog, caller, report, model.files.size());
}

}  // namespace modelstore
