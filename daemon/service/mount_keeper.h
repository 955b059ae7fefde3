// Keeps the mount up (layer: daemon/service).
//
// Somebody may unmount it from outside (umount, an aborted FUSE connection): `ended_fd` becomes readable then and the
// owner mounts again, which costs readers their open files and nobody his push. Not thread-safe, except what is const.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "catalog/read/catalog.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"
#include "codec/support/thread.h"
#include "fuse/mount.h"

namespace modelstore {

class MountKeeper {
 public:
  // `catalog` outlives the keeper. Errors: as Mount::Start.
  static Result<std::unique_ptr<MountKeeper>> Start(Catalog& catalog, const MountOptions& options);
  ~MountKeeper();  // unmounts

  int ended_fd() const { return ended_fd_; }
  // After ended_fd became readable. Errors: as Mount::Start.
  Status MountAgain();
  Status Stop();

  std::optional<MountState> state() const;  // null while it is not mounted
  uint64_t device() const;                  // st_dev of its files; 0 while it is not mounted
  MountStats stats() const;                 // of all its mounts together

 private:
  MountKeeper(Catalog& catalog, const MountOptions& options, int ended_fd)
      : catalog_(catalog), options_(options), ended_fd_(ended_fd) {}
  Status MountNow();

  Catalog& catalog_;
  const MountOptions options_;
  const int ended_fd_;

  Thread watcher_;  // waits for the end of mount_

  mutable Mutex mutex_;
  std::unique_ptr<Mount> mount_ MS_GUARDED_BY(mutex_);  // the object itself is thread-safe
  std::optional<MountState> state_ MS_GUARDED_BY(mutex_);
  uint64_t device_ MS_GUARDED_BY(mutex_) = 0;
  MountStats ended_ MS_GUARDED_BY(mutex_);  // of the mounts before
};

}  // namespace modelstore
