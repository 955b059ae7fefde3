#include "catalog/schema/access.h"

#include <sys/stat.h>

#include <algorithm>

namespace modelstore {

bool Identity::IsIn(gid_t group) const {
  return gid == group || std::find(groups.begin(), groups.end(), group) != groups.end();
}

bool MayReadFile(const Identity& who, const ModelRecord& model, const ModelFile& file) {
  if (who.uid == model.owner_uid) return (file.mode & S_IRUSR) != 0;
  if (who.IsIn(file.gid)) return (file.mode & S_IRGRP) != 0;
  return (file.mode & S_IROTH) != 0;
}

bool MaySeeModel(const Identity& who, const ModelRecord& model) {
  if (who.uid == model.owner_uid || model.files.empty()) return true;
  return std::any_of(model.files.begin(), model.files.end(),
                     [&](const ModelFile& file) { return MayReadFile(who, model, file); });
}

}  // namespace modelstore
