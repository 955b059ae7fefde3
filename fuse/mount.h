// A FUSE mount of a catalog (layer: fuse; its .cc files are the only users of libfuse).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "catalog/read/catalog.h"
#include "codec/support/status.h"

namespace modelstore {

// One opening of a file, told when its last descriptor and mapping are gone.
struct AccessRecord {
  std::string model, path;
  uint32_t pid = 0, uid = 0;  // of who opened it; pid 0: of another namespace
  std::string process;        // its name then, "" when unknown
  uint64_t file_bytes = 0;
  // What the mount answered; what came from the kernel's page cache is not among it.
  uint64_t reads = 0, read_bytes = 0, errors = 0;
  double seconds = 0;  // from open to release
};

struct MountOptions {
  std::string mountpoint;         // an existing or creatable empty folder
  uint32_t read_ahead_kb = 8192;  // written to the bdi when we may
  unsigned threads = 0;           // FUSE workers; 0: enough for 16 faulting processes on a small machine
  bool allow_other = false;       // true when root
  // Called on the mount's workers, with no lock held; must not touch the mount.
  std::function<void(const AccessRecord&)> on_access;
};

struct MountState {
  std::string mountpoint;
  uint32_t read_ahead_kb = 0;  // what the kernel really uses
  uint64_t device = 0;         // st_dev of every file on it
};

// Since the mount started.
struct MountStats {
  uint64_t reads = 0, read_bytes = 0;
  uint64_t errors = 0;      // opens and reads that failed
  uint64_t open_files = 0;  // now, mapped ones included
};

class Mount {
 public:
  // Mounts and serves on threads of its own. A stale mount of ours left by a killed process (ENOTCONN) is unmounted
  // first; any other file system mounted there, or a folder that is not empty, is refused. Sets the process's malloc to
  // keep what it frees (64 MiB at most). Errors: NotFound, PermissionDenied, Busy, Io, Unavailable (no /dev/fuse: says
  // how to get it).
  static Result<std::unique_ptr<Mount>> Start(Catalog& catalog, const MountOptions& options);
  ~Mount();  // Stop()

  MountState state() const;
  MountStats stats() const;
  // Blocks until somebody unmounts (fusermount3 -u, umount) or Stop is called from another thread or RequestStop from a
  // signal.
  void Wait();
  // Unmounts (lazily when files are still open) and joins the threads; bounded time.
  Status Stop();
  // Async-signal-safe.
  void RequestStop();

 private:
  struct Impl;
  explicit Mount(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Unmounts a modelstore mount from outside. Errors: NotFound (nothing of ours is mounted there), Busy,
// PermissionDenied.
Status Unmount(const std::string& mountpoint);

}  // namespace modelstore
