#include <nlohmann/json.hpp>

#include "catalog/write/maintain.h"
#include "daemon/handler_groups.h"
#include "daemon/parameters.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& document) { return document.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

Result<std::string> HandleVerify(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"names"}));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, parameters.Strings("names"));
  ASSIGN_OR_RETURN(const VerifyReport report, Verify(catalog, names, *request.job));
  Json failed = Json::array();
  for (const VerifyFailure& failure : report.failed)
    failed.push_back({{"model", failure.model}, {"file", failure.file}, {"reason", failure.reason}});
  return Dump({{"checked", report.checked}, {"checked_bytes", report.checked_bytes}, {"failed", std::move(failed)}});
}

Result<std::string> HandleExport(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"name", "dir"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name"));
  ASSIGN_OR_RETURN(const std::string dir, parameters.String("dir"));
  if (!dir.starts_with('/')) return InvalidArgument("export folder '" + dir + "' is not absolute");
  ASSIGN_OR_RETURN(const ExportReport report, Export(catalog, name, dir, *request.job));
  return Dump({{"name", name}, {"dir", dir}, {"files", report.files}, {"bytes", report.bytes}});
}

}  // namespace modelstore
