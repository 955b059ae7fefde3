#include <algorithm>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "catalog/write/folder_sink.h"
#include "catalog/write/maintain.h"
#include "codec/json/json_text.h"
#include "daemon/handlers/handler_groups.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxVerifyNames = 10'000;

// Who checks everything learns that something is damaged, and what it is where the caller may read it.
std::vector<VerifyFailure> FailuresFor(const Caller& caller, const Catalog& catalog, const VerifyReport& report) {
  std::map<std::string, Result<ModelRecord>> models;
  const auto may_read = [&](const VerifyFailure& failure) {
    if (caller.administrator || failure.model.empty()) return true;
    const auto found = models.find(failure.model);
    const Result<ModelRecord>& model =
        found != models.end() ? found->second
                              : models.emplace(failure.model, catalog.FindModel(failure.model)).first->second;
    return model.ok() && std::any_of(model->files.begin(), model->files.end(), [&](const ModelFile& file) {
             return file.path == failure.file && caller.MayReadFile(*model, file);
           });
  };
  std::vector<VerifyFailure> shown;
  std::copy_if(report.failed.begin(), report.failed.end(), std::back_inserter(shown), may_read);
  if (const size_t hidden = report.failed.size() - shown.size(); hidden != 0)
    shown.push_back({"", "", std::to_string(hidden) + " damaged files that you may not read; root learns which"});
  return shown;
}

}  // namespace

Result<std::string> HandleVerify(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"names"}));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, parameters.Strings("names"));
  if (names.empty()) RETURN_IF_ERROR(request.caller->CheckMayPush());
  if (names.size() > kMaxVerifyNames)
    return InvalidArgument("verify: " + std::to_string(names.size()) + " names; at most " +
                           std::to_string(kMaxVerifyNames) + " at once, or none for everything");
  const std::set<std::string> unique(names.begin(), names.end());
  for (const std::string& name : unique) {
    RETURN_IF_ERROR(request.job->Check());
    ASSIGN_OR_RETURN(const ModelRecord model, catalog.FindModel(name));
    RETURN_IF_ERROR(request.caller->CheckMaySee(model));
  }
  ASSIGN_OR_RETURN(const VerifyReport report, Verify(catalog, {unique.begin(), unique.end()}, *request.job));
  Json failed = Json::array();
  for (const VerifyFailure& failure : FailuresFor(*request.caller, catalog, report))
    failed.push_back({{"model", failure.model}, {"file", failure.file}, {"reason", failure.reason}});
  return JsonText(
      Json({{"checked", report.checked}, {"checked_bytes", report.checked_bytes}, {"failed", std::move(failed)}}));
}

Result<std::string> HandleExport(Catalog& catalog, const Request& request) {
  ASSIGN_OR_RETURN(const Parameters parameters, Parameters::Parse(request.parameters, {"name", "dir"}));
  ASSIGN_OR_RETURN(const std::string name, parameters.String("name"));
  ASSIGN_OR_RETURN(const std::string dir, parameters.String("dir"));  // the answer repeats it
  if (!dir.starts_with('/')) return InvalidArgument("export folder '" + dir + "' is not absolute");
  std::unique_ptr<ExportSink> folder;
  if (request.sink == nullptr) folder = NewFolderSink(dir);
  const auto may_read = [&](const ModelRecord& model, const ModelFile& file) -> Status {
    RETURN_IF_ERROR(request.caller->CheckMaySee(model));
    if (request.caller->MayReadFile(model, file)) return OkStatus();
    return PermissionDenied("'" + name + "' has files that you may not read: what you may, the mount shows");
  };
  ASSIGN_OR_RETURN(const ExportReport report,
                   Export(catalog, name, may_read, folder ? *folder : *request.sink, *request.job));
  return JsonText(Json({{"name", name}, {"dir", dir}, {"files", report.files}, {"bytes", report.bytes}}));
}

}  // namespace modelstore
