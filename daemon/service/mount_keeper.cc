#include "daemon/service/mount_keeper.h"

#include <sys/eventfd.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "fuse/mount_table.h"

namespace modelstore {

namespace {
constexpr size_t kWatcherStackBytes = 256u << 10;
}  // namespace

Result<std::unique_ptr<MountKeeper>> MountKeeper::Start(Catalog& catalog, const MountOptions& options) {
  const int ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (ended_fd < 0) return StatusFromErrno(errno, "creating an eventfd");
  std::unique_ptr<MountKeeper> keeper(new MountKeeper(catalog, options, ended_fd));
  RETURN_IF_ERROR(keeper->MountNow());
  return keeper;
}

MountKeeper::~MountKeeper() {
  (void)Stop();
  close(ended_fd_);
}

Status MountKeeper::MountNow() {
  ASSIGN_OR_RETURN(std::unique_ptr<Mount> mounted, Mount::Start(catalog_, options_));
  Mount* const mount = mounted.get();
  {
    const MutexLock lock(mutex_);
    mount_ = std::move(mounted);
  }
  const MountState state = mount->state();
  ASSIGN_OR_RETURN(const std::optional<MountEntry> entry, FindMount(state.mountpoint));
  if (!entry) return Unavailable("the mount on " + state.mountpoint + " vanished while it was set up");
  const auto watch = [this, mount] {
    mount->Wait();
    const uint64_t one = 1;
    (void)!write(ended_fd_, &one, sizeof one);
  };
  ASSIGN_OR_RETURN(watcher_, Thread::Start(watch, kWatcherStackBytes));
  const MutexLock lock(mutex_);
  state_ = state;
  device_ = makedev(entry->device_major, entry->device_minor);
  return OkStatus();
}

Status MountKeeper::MountAgain() {
  (void)Stop();
  uint64_t ends;
  (void)!read(ended_fd_, &ends, sizeof ends);
  return MountNow();
}

Status MountKeeper::Stop() {
  Mount* mount = nullptr;  // which only this function, called by one thread, takes away
  {
    const MutexLock lock(mutex_);
    mount = mount_.get();
  }
  const Status status = mount != nullptr ? mount->Stop() : OkStatus();
  watcher_.Join();
  std::unique_ptr<Mount> ended;  // goes after the lock
  const MutexLock lock(mutex_);
  ended = std::move(mount_);
  if (ended) {
    const MountStats stats = ended->stats();
    ended_.reads += stats.reads;
    ended_.read_bytes += stats.read_bytes;
    ended_.errors += stats.errors;
  }
  state_.reset();
  device_ = 0;
  return status;
}

std::optional<MountState> MountKeeper::state() const {
  const MutexLock lock(mutex_);
  return state_;
}

uint64_t MountKeeper::device() const {
  const MutexLock lock(mutex_);
  return device_;
}

MountStats MountKeeper::stats() const {
  const MutexLock lock(mutex_);
  MountStats sum = ended_;
  if (mount_) {
    const MountStats now = mount_->stats();
    sum.reads += now.reads;
    sum.read_bytes += now.read_bytes;
    sum.errors += now.errors;
    sum.open_files = now.open_files;
  }
  return sum;
}

}  // namespace modelstore
