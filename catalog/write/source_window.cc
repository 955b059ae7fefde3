#include "catalog/write/source_window.h"

#include <algorithm>

#include "catalog/write/push.h"

namespace modelstore {

Result<SourceWindow::Descriptor> SourceWindow::Open(const SourceFile& file) {
  // Held while the file is opened: neighbouring extents, which are read at the same time, are mostly of one file.
  const MutexLock lock(mutex_);
  const auto found = std::ranges::find_if(recent_, [&](const auto& entry) { return entry.first == file.ordinal; });
  if (found != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, found);
    return recent_.front().second;
  }
  ASSIGN_OR_RETURN(UniqueFd opened, open_(file));
  if (recent_.size() >= capacity_) recent_.pop_back();
  recent_.emplace_front(file.ordinal, std::make_shared<const UniqueFd>(std::move(opened)));
  return recent_.front().second;
}

}  // namespace modelstore
