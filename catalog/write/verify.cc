#include <map>
#include <mutex>

#include "catalog/write/file_reader.h"
#include "catalog/write/maintain.h"
#include "catalog/write/parallel.h"

namespace modelstore {

Result<VerifyReport> Verify(Catalog& catalog, const std::vector<std::string>& names, JobControl& job) {
  const std::shared_lock keep(catalog.collect_mutex());
  std::vector<ModelRecord> models;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(models.emplace_back(), catalog.FindModel(name));
  }
  if (names.empty()) {
    ASSIGN_OR_RETURN(models, catalog.ListModels());
  }
  // Each distinct file is read once, however many models hold it.
  std::map<Sha256Digest, Status> outcomes;
  VerifyReport report;
  uint64_t total_bytes = 0;
  for (const ModelRecord& model : models) {
    for (const ModelFile& file : model.files) {
      report.checked += 1;
      report.checked_bytes += file.bytes;
      if (outcomes.emplace(file.sha256, OkStatus()).second) total_bytes += file.bytes;
    }
  }
  std::vector<std::pair<const Sha256Digest, Status>*> files;
  for (auto& outcome : outcomes) files.push_back(&outcome);
  job.Begin("verifying", total_bytes);
  RETURN_IF_ERROR(ParallelRun(catalog.pool(), files.size(), [&](size_t i) -> Status {
    files[i]->second = ReadWholeFile(catalog, files[i]->first, job, [](ByteSpan) { return OkStatus(); });
    return files[i]->second.code() == StatusCode::kCancelled ? files[i]->second : OkStatus();
  }));
  for (const ModelRecord& model : models) {
    for (const ModelFile& file : model.files) {
      const Status& status = outcomes.at(file.sha256);
      if (!status.ok()) report.failed.push_back({model.name, file.path, std::string(status.message())});
    }
  }
  if (names.empty()) {
    if (const Status status = catalog.store().VerifyChecksums(); !status.ok())
      report.failed.push_back({"", "", std::string(status.message())});
  }
  return report;
}

}  // namespace modelstore
