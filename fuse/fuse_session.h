// FuseSession: one mounted libfuse session and its threads, whatever it serves (layer: fuse).
//
// Three kinds of threads: libfuse's workers call the ops; the session thread waits for them and unmounts at the end;
// the control thread sends invalidations and stop requests to the kernel. Nothing that may wait for the kernel runs on
// a worker, so a request can always be answered. Thread-safe. `ops` and `context` outlive the object.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "codec/support/status.h"
#include "fuse/inode_tree.h"

struct fuse_lowlevel_ops;

namespace modelstore {

struct FuseSessionOptions {
  std::string mountpoint;  // resolved, an empty folder
  uint32_t read_ahead_kb = 8192;
  unsigned threads = 0;  // 0: chosen for 16 faulting processes
  bool allow_other = false;
};

class FuseSession {
 public:
  // Mounts read-only and returns when the mount answers. `ops.init` is replaced; `context` is each request's userdata.
  // Errors: Unavailable (no /dev/fuse or fusermount3), PermissionDenied, Io.
  static Result<std::unique_ptr<FuseSession>> Start(fuse_lowlevel_ops ops, void* context,
                                                    const FuseSessionOptions& options);
  ~FuseSession();  // Stop()

  uint32_t read_ahead_kb() const;  // in force
  uint64_t device() const;         // st_dev of what is on the mount

  // Makes the kernel forget what it knows of these names (also that they did not exist), of these directories their
  // attributes and listings, and of these files their attributes; returns when it has, or when the session has ended.
  // Call it with no lock held that an op takes.
  void Forget(TreeChanges changes);

  // Returns when the session has ended: somebody unmounted, or a stop was requested.
  void Wait();
  // Async-signal-safe.
  void RequestStop();
  // Ends the session also when files are open: their readers get ENOTCONN. Waits only for requests that are being
  // answered. Errors: Io (the session loop failed).
  Status Stop();

 private:
  struct Impl;
  explicit FuseSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
