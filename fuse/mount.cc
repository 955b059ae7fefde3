#include "fuse/mount.h"

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)
#include <fuse_lowlevel.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "catalog/read/folder_times.h"
#include "catalog/schema/folder_record.h"
#include "codec/support/log.h"
#include "codec/support/mutex.h"
#include "fuse/fuse_session.h"
#include "fuse/mount_ops.h"
#include "fuse/mount_table.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

// Folders made for the mount, removed again at the end when they are still empty.
class MadeFolders {
 public:
  MadeFolders() = default;
  MadeFolders(MadeFolders&&) = default;
  MadeFolders& operator=(MadeFolders&&) = default;
  ~MadeFolders() { Remove(); }

  Status Make(const fs::path& folder) {
    std::error_code error;
    if (fs::is_directory(folder, error)) return OkStatus();
    if (folder.has_parent_path() && folder.parent_path() != folder) RETURN_IF_ERROR(Make(folder.parent_path()));
    if (!fs::create_directory(folder, error)) {
      if (!error) return OkStatus();  // somebody else made it meanwhile
      return StatusFromErrno(error.value(), "creating the mount point " + folder.string());
    }
    made_.push_back(folder);
    return OkStatus();
  }

  void Remove() {
    for (auto it = made_.rbegin(); it != made_.rend(); ++it) ::rmdir(it->c_str());
    made_.clear();
  }

 private:
  std::vector<fs::path> made_;
};

// Leaves an empty folder without a mount at `mountpoint` (resolved).
Status PrepareMountpoint(const std::string& mountpoint, MadeFolders& made) {
  for (;;) {
    ASSIGN_OR_RETURN(const std::optional<MountEntry> top, FindMount(mountpoint));
    if (!top) break;
    if (top->type != kMountType)
      return Busy(mountpoint + " is the mount point of another file system (" + top->type +
                  "); unmount that or choose another folder");
    if (!IsDead(mountpoint))
      return Busy(mountpoint + " is already served by a modelstore process; `modelstore unmount " + mountpoint +
                  "` ends that");
    RETURN_IF_ERROR(DetachMount(mountpoint, /*lazy=*/true).WithContext("a mount whose process was killed"));
  }

  std::error_code error;
  const fs::file_status status = fs::status(mountpoint, error);
  if (status.type() == fs::file_type::not_found) return made.Make(mountpoint);
  if (error) return StatusFromErrno(error.value(), "looking at the mount point " + mountpoint);
  if (!fs::is_directory(status)) return InvalidArgument(mountpoint + " is not a folder; mount on an empty folder");
  const bool empty = fs::is_empty(mountpoint, error);
  if (error) return StatusFromErrno(error.value(), "reading the mount point " + mountpoint);
  if (!empty)
    return Busy(mountpoint + " is not empty, and mounting would hide what is in it; choose an empty or a new folder");
  return OkStatus();
}

// A read takes two buffers of up to a block from RocksDB. By default each of the workers' arenas gives its memory back
// after every read and faults it in again at the next: an eighth of the server's CPU time in a cold read.
void KeepHeapMemory() {
  constexpr unsigned kMaxArenas = 4;  // together they keep 64 MiB at most
  ::mallopt(M_ARENA_MAX, static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2u, kMaxArenas)));
  ::mallopt(M_MMAP_THRESHOLD, 4 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 16 << 20);
}

}  // namespace

struct Mount::Impl {
  Impl(Catalog& the_catalog, std::string at, const MountOptions& options)
      : catalog(the_catalog), mountpoint(std::move(at)), ops(the_catalog, options.on_access) {}

  Catalog& catalog;
  const std::string mountpoint;
  MadeFolders made;
  MountOps ops;
  std::shared_ptr<FuseSession> session;  // uses ops, until it is stopped

  // The catalog may be calling while the mount goes away.
  struct Listener {
    Mutex mutex;                                        // also: one ShowAll or Show at a time
    Impl* mount MS_GUARDED_BY(mutex) = nullptr;         // null: gone
    std::set<std::string> missed MS_GUARDED_BY(mutex);  // models that changed and could not be read
    bool missed_names MS_GUARDED_BY(mutex) = false;     // memory failed before `missed` held them: all may have changed
  };
  std::shared_ptr<Listener> listener = std::make_shared<Listener>();

  // Takes all models from the catalog. Called one at a time.
  Result<TreeChanges> ShowAll() {
    ASSIGN_OR_RETURN(std::vector<ModelRecord> models, catalog.ListModels());
    ASSIGN_OR_RETURN(const FolderTimes times, ListFolderTimes(catalog.store()));
    return ops.ShowModels(std::move(models), times);
  }

  // … only what may have changed with these.
  Result<TreeChanges> Show(const std::vector<std::string>& changed) {
    const std::vector<std::string> names = ops.Concerned(changed);
    std::vector<ModelRecord> models;
    FolderTimes times;
    for (const std::string& name : names) {
      Result<ModelRecord> model = catalog.FindModel(name);
      if (model.ok()) {
        models.push_back(std::move(*model));
      } else if (model.status().code() != StatusCode::kNotFound) {
        return model.status();
      }
      for (const std::string& folder : FoldersAbove(name)) {
        ASSIGN_OR_RETURN(times[folder], FolderTime(catalog.store(), folder));
      }
    }
    return ops.ChangeModels(names, std::move(models), times);
  }

  void Listen() {
    {
      const MutexLock lock(listener->mutex);
      listener->mount = this;
    }
    catalog.SetOnChanged([heard = listener](const std::vector<std::string>& names) {
      std::shared_ptr<FuseSession> told;
      TreeChanges changes;
      {
        const MutexLock lock(heard->mutex);
        if (!heard->mount) return;
        const bool all = std::exchange(heard->missed_names, true);
        heard->missed.insert(names.begin(), names.end());
        heard->missed_names = all;
        Result<TreeChanges> shown =
            all ? heard->mount->ShowAll() : heard->mount->Show({heard->missed.begin(), heard->missed.end()});
        if (!shown.ok()) {
          Log(LogLevel::kError,
              heard->mount->mountpoint + " still shows the models of before a change: " + shown.status().ToString());
          return;
        }
        heard->missed.clear();
        heard->missed_names = false;
        changes = std::move(*shown);
        told = heard->mount->session;
      }
      // Nobody else waits while the kernel is told.
      told->Forget(std::move(changes));
    });
  }

  void StopListening() {
    catalog.SetOnChanged(nullptr);
    const MutexLock lock(listener->mutex);
    listener->mount = nullptr;
  }
};

Mount::Mount(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Mount>> Mount::Start(Catalog& catalog, const MountOptions& options) {
  KeepHeapMemory();
  ASSIGN_OR_RETURN(const std::string mountpoint, ResolveMountpoint(options.mountpoint));
  auto impl = std::make_unique<Impl>(catalog, mountpoint, options);
  RETURN_IF_ERROR(PrepareMountpoint(mountpoint, impl->made));

  FuseSessionOptions session;
  session.mountpoint = mountpoint;
  session.read_ahead_kb = options.read_ahead_kb;
  session.threads = options.threads;
  session.allow_other = options.allow_other || ::geteuid() == 0;
  RETURN_IF_ERROR(impl->ShowAll().status());
  ASSIGN_OR_RETURN(impl->session, FuseSession::Start(MountOps::Table(), &impl->ops, session));

  // From here changes are heard; what changed before is fetched once more.
  impl->Listen();
  std::unique_ptr<Mount> mount(new Mount(std::move(impl)));
  TreeChanges changes;
  {
    const MutexLock lock(mount->impl_->listener->mutex);
    ASSIGN_OR_RETURN(changes, mount->impl_->ShowAll());
  }
  mount->impl_->session->Forget(std::move(changes));
  return mount;
}

Mount::~Mount() {
  if (const Status status = Stop(); !status.ok()) Log(LogLevel::kError, status.ToString());
}

MountState Mount::state() const {
  return {impl_->mountpoint, impl_->session->read_ahead_kb(), impl_->session->device()};
}

MountStats Mount::stats() const { return impl_->ops.stats(); }

void Mount::Wait() { impl_->session->Wait(); }

Status Mount::Stop() {
  // The session first: who tells the kernel of a change waits for its answers.
  const Status status = impl_->session->Stop();
  impl_->StopListening();
  impl_->made.Remove();
  return status;
}

void Mount::RequestStop() { impl_->session->RequestStop(); }

Status Unmount(const std::string& mountpoint) {
  ASSIGN_OR_RETURN(const std::string resolved, ResolveMountpoint(mountpoint));
  ASSIGN_OR_RETURN(const std::optional<MountEntry> top, FindMount(resolved));
  if (!top || top->type != kMountType)
    return NotFound("no modelstore is mounted on " + resolved +
                    (top ? " (there is another file system, " + top->type + ")" : std::string()));
  return DetachMount(resolved, /*lazy=*/IsDead(resolved));
}

}  // namespace modelstore
