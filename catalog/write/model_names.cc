#include "catalog/write/model_names.h"

namespace modelstore {

Status CheckNameIsFree(const KvReader& store, const std::string& name, const std::string& leaving) {
  for (size_t end = name.find('/');; end = name.find('/', end + 1)) {
    const std::string taken = name.substr(0, end);
    if (taken != leaving) {
      const Result<StoredValue> found = store.Get(Family::kModels, taken);
      if (found.ok() && taken == name)
        return AlreadyExists("a model named '" + name +
                             "' exists; choose another name, remove it with rm, or replace it with push --update");
      if (found.ok())
        return AlreadyExists("'" + name + "' would lie inside the model '" + taken + "'; choose another name");
      if (found.status().code() != StatusCode::kNotFound) return found.status();
    }
    if (end == std::string::npos) break;
  }
  return store.ScanKeys(Family::kModels, name + "/", [&](std::string_view key) {
    if (key == leaving) return OkStatus();
    // Which one, not everybody may know.
    return AlreadyExists("'" + name + "' is a folder of other models; choose another name");
  });
}

std::string TopLevelName(const std::string& name) { return name.substr(0, name.find('/')); }

}  // namespace modelstore
