#include "catalog/schema/access.h"

#include <sys/stat.h>

#include <algorithm>

namespace modelstore {

bool Identity::IsIn(gid_t group) const {
  const auto is_it = [&](gid_t mine) { return ids.SameGroup(mine, group); };
  return is_it(gid) || std::any_of(groups.begin(), groups.end(), is_it);
}

bool MayReadFile(const Identity& who, const ModelRecord& model, const ModelFile& file) {
  if (who.Is(model.owner_uid)) return (file.mode & S_IRUSR) != 0;
  if (who.IsIn(file.gid)) return (file.mode & S_IRGRP) != 0;
  return (file.mode & S_IROTH) != 0;
}

bool MaySeeModel(const Identity& who, const ModelRecord& model) {
  if (who.Is(model.owner_uid) || model.files.empty()) return true;
  return std::any_of(model.files.begin(), model.files.end(),
                     [&](const ModelFile& file) { return MayReadFile(who, model, file); });
}

}  // namespace modelstore
