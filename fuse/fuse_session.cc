#include "fuse/fuse_session.h"

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <thread>

#include "codec/support/guarded.h"
#include "codec/support/log.h"
#include "codec/support/mutex.h"
#include "codec/support/thread.h"
#include "fuse/mount_table.h"

namespace modelstore {
namespace {

constexpr unsigned kMaxBackground = 128;  // 12, the default, gave 16 faulting processes a quarter of the rate of 64
constexpr unsigned kCongestionThreshold = 96;
// More than 1 MiB where libfuse has it; the kernel takes as much of it as fs.fuse.max_pages_limit allows.
constexpr unsigned kMaxRequestBytes = 4 << 20;
constexpr unsigned kMinThreads = 16;
constexpr unsigned kMaxThreads = 64;

// Interrupts the session thread's sleep and does nothing else.
const int kInterruptSignal = SIGRTMIN;
void IgnoreInterrupt(int) {}

// While set, libfuse's complaints on this thread are kept here, as the reason why mounting failed.
thread_local std::string* kept_messages = nullptr;

void LogFuseMessage(fuse_log_level level, const char* format, va_list arguments) {
  if (level > FUSE_LOG_WARNING) return;
  char text[512];
  std::vsnprintf(text, sizeof(text), format, arguments);
  std::string message = text;
  while (!message.empty() && message.back() == '\n') message.pop_back();
  if (kept_messages) {
    *kept_messages = message;
  } else {
    Log(level <= FUSE_LOG_ERR ? LogLevel::kError : LogLevel::kWarning, message);
  }
}

void ConfigureConnection(void*, fuse_conn_info* conn) {
  const auto want = [conn](unsigned flags) { conn->want |= conn->capable & flags; };
  want(FUSE_CAP_ASYNC_READ | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_PARALLEL_DIROPS);
  // Content behind a node never changes, so the kernel need not compare mtimes. Answers come from memory, and splicing
  // memory maps every page of it.
  conn->want &= ~static_cast<unsigned>(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
                                       FUSE_CAP_SPLICE_MOVE);
  // libfuse sizes all requests by it, reads too. Before 3.17 it has buffers of 1 MiB whatever it is told.
  if (fuse_version() >= FUSE_MAKE_VERSION(3, 17)) conn->max_write = kMaxRequestBytes;
  conn->max_background = kMaxBackground;
  conn->congestion_threshold = kCongestionThreshold;
}

Status CheckFuseDevice() {
  const int fd = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ::close(fd);
    return OkStatus();
  }
  const int error = errno;
  if (error == ENOENT || error == ENODEV || error == ENXIO)
    return Unavailable(
        "/dev/fuse is not there; load the module (modprobe fuse), or start the container with --device /dev/fuse "
        "--cap-add SYS_ADMIN");
  return StatusFromErrno(error, "opening /dev/fuse");
}

unsigned ThreadCount(unsigned asked) {
  if (asked != 0) return asked;
  return std::clamp(2 * std::thread::hardware_concurrency(), kMinThreads, kMaxThreads);
}

}  // namespace

struct FuseSession::Impl {
  struct Batch {
    TreeChanges changes;
    bool done = false;
  };

  FuseSessionOptions options;
  fuse_session* session = nullptr;
  int wake_fd = -1;
  std::atomic<bool> stop_requested{false};
  uint32_t read_ahead_kb = 0;
  MountEntry mounted;

  Mutex mutex;
  CondVar changed;
  std::deque<std::shared_ptr<Batch>> batches MS_GUARDED_BY(mutex);
  bool loop_ended MS_GUARDED_BY(mutex) = false;  // no request will be answered any more
  bool ended MS_GUARDED_BY(mutex) = false;       // and nothing of ours is mounted
  int loop_error MS_GUARDED_BY(mutex) = 0;

  Thread session_thread, control_thread;
  Mutex stop_mutex MS_ACQUIRED_BEFORE(mutex);  // of who joins session_thread

  ~Impl() {
    if (session) fuse_session_destroy(session);
    if (wake_fd >= 0) ::close(wake_fd);
  }

  void WakeControl() const {
    const uint64_t one = 1;
    if (::write(wake_fd, &one, sizeof(one)) < 0) {
      // EAGAIN: the counter is full, so the thread is awake already.
    }
  }

  // libfuse unmounts whatever is at the path, unless its connection is closed: it may only do so while that is ours
  // (after `umount -l` with open files another mount may be there).
  bool MayUnmount() const noexcept {
    pollfd connection{fuse_session_fd(session), 0, 0};
    if (::poll(&connection, 1, 0) > 0 && (connection.revents & POLLERR)) return true;
    const Result<std::optional<MountEntry>> top = Guarded([&] { return FindMount(options.mountpoint); });
    return top.ok() && *top && (*top)->type == kMountType && (*top)->device_major == mounted.device_major &&
           (*top)->device_minor == mounted.device_minor;
  }

  // libfuse's loop: 0, or a negative errno.
  int Loop() const {
    fuse_loop_config* const config = fuse_loop_cfg_create();
    if (config == nullptr) return -ENOMEM;
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, ThreadCount(options.threads));
    const int result = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    return result == -1 ? -EAGAIN : result;  // -1: it could not start a thread
  }

  // Both threads, or none: then the caller joins the control thread, which ends.
  Status StartThreads() {
    const MutexLock lock(mutex);  // the threads see each other's handles
    ASSIGN_OR_RETURN(control_thread, Thread::Start([this] { Control(); }));
    Result<Thread> serving = Thread::Start([this] { ServeRequests(); });
    if (!serving.ok()) {
      loop_ended = true;
      WakeControl();
      return serving.status();
    }
    session_thread = *std::move(serving);
    return OkStatus();
  }

  void ServeRequests() noexcept {
    const int result = Loop();
    {
      const MutexLock lock(mutex);
      loop_ended = true;
      loop_error = result;
      changed.NotifyAll();
    }
    WakeControl();
    control_thread.Join();
    // Closing the last descriptor fails every request that waits, also through a mount that is still busy.
    if (MayUnmount()) fuse_session_unmount(session);
    fuse_session_destroy(session);
    session = nullptr;
    const MutexLock lock(mutex);
    ended = true;
    changed.NotifyAll();
  }

  // The names first: for each the kernel waits until nobody is looking up a name in its directory or reading a listing,
  // and what came of that is among what is dropped then. A name that the kernel does not know (never looked up, or
  // dropped when memory was short) leaves the directory's listing and attributes as they are, so these are dropped in
  // any case. Where only attributes changed a name that no file has makes the kernel wait.
  void MakeForget(const TreeChanges& changes) const {
    constexpr std::string_view kNoName = "\n";
    for (const NodeId parent : changes.parents)
      fuse_lowlevel_notify_inval_entry(session, parent, kNoName.data(), kNoName.size());
    for (const auto& [parent, name] : changes.names)
      fuse_lowlevel_notify_inval_entry(session, parent, name.data(), name.size());
    for (const NodeId directory : changes.directories)
      fuse_lowlevel_notify_inval_inode(session, directory, /*off=*/0, /*len=*/0);  // len 0: to the end
    for (const NodeId file : changes.files)
      fuse_lowlevel_notify_inval_inode(session, file, /*off=*/-1, /*len=*/0);  // attributes alone
  }

  void Control() noexcept {
    for (bool stopping = false; !stopping;) {
      uint64_t count = 0;
      while (::read(wake_fd, &count, sizeof(count)) < 0 && errno == EINTR) {
      }
      stopping = stop_requested.load();
      for (;;) {
        std::shared_ptr<Batch> batch;
        {
          const MutexLock lock(mutex);
          stopping = stopping || loop_ended;
          if (batches.empty()) break;
          batch = batches.front();
          batches.pop_front();
        }
        if (!stopping) MakeForget(batch->changes);
        const MutexLock lock(mutex);
        batch->done = true;
        changed.NotifyAll();
      }
    }
    fuse_session_exit(session);
    // libfuse's loop sleeps in sem_wait and looks at the flag only when that is interrupted. Repeated, because a signal
    // may come just before the sleep.
    const MutexLock lock(mutex);
    while (!loop_ended) {
      ::pthread_kill(session_thread.handle(), kInterruptSignal);
      changed.WaitUntil(mutex, std::chrono::steady_clock::now() + std::chrono::milliseconds(10));
    }
  }
};

FuseSession::FuseSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<FuseSession>> FuseSession::Start(fuse_lowlevel_ops ops, void* context,
                                                        const FuseSessionOptions& options) {
  RETURN_IF_ERROR(CheckFuseDevice());
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->wake_fd = ::eventfd(0, EFD_CLOEXEC);
  if (impl->wake_fd < 0) return StatusFromErrno(errno, "creating an eventfd");

  ops.init = ConfigureConnection;
  std::string mount_options = "ro,nosuid,nodev,noatime,default_permissions,fsname=modelstore,subtype=modelstore";
  if (options.allow_other) mount_options += ",allow_other";
  const char* argv[] = {"modelstore", "-o", mount_options.c_str()};
  fuse_args arguments = FUSE_ARGS_INIT(3, const_cast<char**>(argv));
  std::string said;
  fuse_set_log_func(LogFuseMessage);
  kept_messages = &said;
  impl->session = fuse_session_new(&arguments, &ops, sizeof(ops), context);
  fuse_opt_free_args(&arguments);
  errno = 0;
  const bool mounted = impl->session && fuse_session_mount(impl->session, options.mountpoint.c_str()) == 0;
  const int error = errno;
  kept_messages = nullptr;
  if (!impl->session) return Internal("libfuse refused its options: " + said);
  if (!mounted) {
    const std::string why = "mounting on " + options.mountpoint + ": " + said;
    if (::geteuid() != 0 && ::access("/usr/bin/fusermount3", X_OK) != 0 && ::access("/bin/fusermount3", X_OK) != 0)
      return Unavailable(why + "; an ordinary user needs fusermount3 (install fuse3)");
    if (error == EPERM || error == EACCES || ::geteuid() != 0)
      return PermissionDenied(why +
                              "; a container needs --cap-add SYS_ADMIN, and allow_other as an ordinary user needs "
                              "user_allow_other in /etc/fuse.conf");
    return IoError(why);
  }
  const Result<std::optional<MountEntry>> entry = FindMount(options.mountpoint);
  if (!entry.ok() || !*entry || (*entry)->type != kMountType) {
    fuse_session_unmount(impl->session);
    if (!entry.ok()) return entry.status();
    return Internal("mounted on " + options.mountpoint + ", but /proc/self/mountinfo does not show it");
  }
  impl->mounted = **entry;

  // Signals belong to the program's own threads.
  struct sigaction interrupt {};
  interrupt.sa_handler = IgnoreInterrupt;  // without SA_RESTART
  sigaction(kInterruptSignal, &interrupt, nullptr);
  sigset_t all, before;
  sigfillset(&all);
  sigdelset(&all, kInterruptSignal);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Impl* raw = impl.get();
  const Status threads = raw->StartThreads();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!threads.ok()) {
    raw->control_thread.Join();
    fuse_session_unmount(raw->session);
    return threads.WithContext("mounting on " + options.mountpoint);
  }
  std::unique_ptr<FuseSession> started(new FuseSession(std::move(impl)));

  // The first request waits until the kernel and the server have agreed; then the read-ahead may be raised.
  struct stat root;
  if (::stat(options.mountpoint.c_str(), &root) != 0)
    return StatusFromErrno(errno, "waiting for the mount on " + options.mountpoint + " to answer");
  raw->read_ahead_kb = SetReadAhead(raw->mounted, options.read_ahead_kb);
  return started;
}

FuseSession::~FuseSession() { (void)Stop(); }

uint32_t FuseSession::read_ahead_kb() const { return impl_->read_ahead_kb; }

uint64_t FuseSession::device() const { return makedev(impl_->mounted.device_major, impl_->mounted.device_minor); }

void FuseSession::Forget(TreeChanges changes) {
  if (changes.empty()) return;
  auto batch = std::make_shared<Impl::Batch>();
  batch->changes = std::move(changes);
  {
    const MutexLock lock(impl_->mutex);
    if (impl_->loop_ended) return;
    impl_->batches.push_back(batch);
  }
  impl_->WakeControl();
  const MutexLock lock(impl_->mutex);
  while (!batch->done && !impl_->ended) impl_->changed.Wait(impl_->mutex);
}

void FuseSession::Wait() {
  const MutexLock lock(impl_->mutex);
  while (!impl_->ended) impl_->changed.Wait(impl_->mutex);
}

void FuseSession::RequestStop() {
  impl_->stop_requested.store(true);
  impl_->WakeControl();
}

Status FuseSession::Stop() {
  RequestStop();
  Wait();
  const MutexLock joining(impl_->stop_mutex);
  impl_->session_thread.Join();
  const MutexLock lock(impl_->mutex);
  if (impl_->loop_error < 0)
    return StatusFromErrno(-impl_->loop_error, "serving the mount on " + impl_->options.mountpoint);
  return OkStatus();
}

}  // namespace modelstore
