// SourceWindow: files of a push that are not held open for its whole length, because there are more of them than
// descriptors (layer: catalog/write). Thread-safe.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <utility>

#include "codec/support/mutex.h"
#include "codec/support/status.h"
#include "codec/support/unique_fd.h"

namespace modelstore {

struct SourceFile;

class SourceWindow {
 public:
  using Opener = std::function<Result<UniqueFd>(const SourceFile& file)>;
  using Descriptor = std::shared_ptr<const UniqueFd>;

  // Keeps the `capacity` files that were opened last; those that somebody still reads come on top.
  SourceWindow(size_t capacity, Opener open) : capacity_(capacity), open_(std::move(open)) {}

  // The file, open as long as the descriptor lives; files are told apart by SourceFile::ordinal. It may be another file
  // now: SourceReader checks that. Errors: the opener's.
  Result<Descriptor> Open(const SourceFile& file);

 private:
  const size_t capacity_;
  const Opener open_;
  Mutex mutex_;
  std::list<std::pair<size_t, Descriptor>> recent_ MS_GUARDED_BY(mutex_);  // the latest first
};

}  // namespace modelstore
