#include "catalog/write/push.h"

#include "catalog/write/parallel.h"
#include "catalog/write/push_job.h"

namespace modelstore {

Result<PushReport> Push(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job) {
  PushReport report;
  const Status status = Guarded([&]() -> Status {
    ASSIGN_OR_RETURN(report, PushJob(catalog, source, options, job).Run());
    return OkStatus();
  });
  if (!status.ok()) return status;
  return report;
}

}  // namespace modelstore
