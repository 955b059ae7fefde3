#include "catalog/write/push.h"

#include "catalog/write/push_job.h"
#include "codec/support/guarded.h"

namespace modelstore {

namespace {

Result<PushReport> PushOnce(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job,
                            bool* exceeds_drift) {
  PushReport report;
  const Status status = Guarded([&]() -> Status {
    PushJob push(catalog, source, options, job);
    Result<PushReport> pushed = push.Run();
    *exceeds_drift = push.exceeds_drift();
    if (!pushed.ok()) return pushed.status();
    report = *std::move(pushed);
    return OkStatus();
  });
  if (!status.ok()) return status;
  return report;
}

}  // namespace

Result<PushReport> Push(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job) {
  bool exceeds_drift = false;
  const Result<PushReport> report = PushOnce(catalog, source, options, job, &exceeds_drift);
  if (report.ok() || !exceeds_drift || !options.compact->or_exact) return report;
  job.Warn(std::string(report.status().message()) + "; stored exactly instead");
  PushOptions exact = options;
  exact.compact.reset();
  return PushOnce(catalog, source, exact, job, &exceeds_drift);
}

}  // namespace modelstore
