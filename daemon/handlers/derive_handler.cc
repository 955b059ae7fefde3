#include "catalog/derive/derive.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {

Result<std::string> HandleDerive(Catalog& catalog, const Request& request) {
  const Caller& caller = *request.caller;
  RETURN_IF_ERROR(caller.CheckMayPush());
  ASSIGN_OR_RETURN(const Parameters parameters,
                   Parameters::Parse(request.parameters, {"source", "name", "drop_layers", "keep_layers", "slice",
                                                          "basis", "layer_names", "update"}));
  DeriveOptions options;
  ASSIGN_OR_RETURN(options.source, parameters.String("source"));
  ASSIGN_OR_RETURN(options.name, parameters.String("name"));
  ASSIGN_OR_RETURN(options.drop_layers, parameters.String("drop_layers", ""));
  ASSIGN_OR_RETURN(options.keep_layers, parameters.String("keep_layers", ""));
  ASSIGN_OR_RETURN(options.slice, parameters.Number("slice"));
  ASSIGN_OR_RETURN(const std::string basis, parameters.String("basis", "block"));
  if (basis != "block" && basis != "global") return InvalidArgument("basis '" + basis + "': expected block or global");
  options.basis = basis == "global" ? DeriveOptions::Basis::kGlobal : DeriveOptions::Basis::kBlock;
  ASSIGN_OR_RETURN(options.layer_scheme, parameters.String("layer_names", ""));
  ASSIGN_OR_RETURN(options.update, parameters.Bool("update", false));
  options.more_schemes.assign(request.layer_names.begin(), request.layer_names.end());
  options.moments = request.moments;
  options.owner_uid = caller.uid;
  options.may_replace = [&caller](const ModelRecord& replaced) { return caller.CheckMayChange(replaced); };
  // The variant shows what it is made of to its owner: only who may read all of that may make it.
  options.may_read = [&caller](const ModelRecord& source) {
    return caller.CheckMayReadAll(source, "it can be derived from by who may");
  };
  ASSIGN_OR_RETURN(const PushReport report, Derive(catalog, options, *request.job));
  return PushDocument(catalog, caller, report, report.files);
}

}  // namespace modelstore
