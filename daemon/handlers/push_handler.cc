#include <nlohmann/json.hpp>

#include "catalog/write/push.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {

Result<std::string> HandlePush(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters,
                   Parameters::Parse(request.parameters, {"path", "name", "base", "fidelity", "update"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name", ""));
  ASSIGN_OR_RETURN(const std::string base, parameters.String("base", "auto"));
  ASSIGN_OR_RETURN(const std::string fidelity, parameters.String("fidelity", "exact"));
  if (fidelity != "exact") return Unsupported("fidelity '" + fidelity + "': this build stores models exactly only");
  ASSIGN_OR_RETURN(const bool update, parameters.Bool("update", false));

  SourceTree scanned;
  if (request.source == nullptr) {
    ASSIGN_OR_RETURN(const std::string path, parameters.String("path"));
    if (!path.starts_with('/')) return InvalidArgument("path '" + path + "' is not absolute");
    Result<SourceTree> tree = SourceTree::Scan(path);
    // The words were right, what they name cannot be stored.
    if (tree.status().code() == StatusCode::kInvalidArgument) return Unsupported(std::string(tree.status().message()));
    ASSIGN_OR_RETURN(scanned, std::move(tree));
  }
  const SourceTree& source = request.source != nullptr ? *request.source : scanned;
  PushOptions options;
  options.name = name.empty() ? source.default_name() : name;
  options.update = update;
  options.owner_uid = request.caller->uid;
  if (base == "none") {
    options.base = PushOptions::Base::kNone;
  } else if (base != "auto") {
    options.base = PushOptions::Base::kNamed;
    options.base_name = base;
  }
  ASSIGN_OR_RETURN(const PushReport report, Push(catalog, source, options, *request.job));

  nlohmann::ordered_json out;
  out["name"] = report.name;
  out["base"] = report.base.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(report.base);
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
