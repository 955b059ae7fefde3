#include "catalog/write/push.h"

#include <exception>
#include <new>

#include "catalog/write/push_job.h"

namespace modelstore {

Result<PushReport> Push(Catalog& catalog, const SourceTree& source, const PushOptions& options, JobControl& job) {
  try {
    return PushJob(catalog, source, options, job).Run();
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory while storing '" + options.name + "'; nothing was published");
  } catch (const std::exception& e) {
    return Internal(std::string("storing '") + options.name + "': " + e.what());
  }
}

}  // namespace modelstore
