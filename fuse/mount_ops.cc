#include "fuse/mount_ops.h"

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "catalog/schema/access.h"
#include "catalog/schema/xattrs.h"
#include "codec/json/json_text.h"
#include "codec/support/guarded.h"
#include "codec/support/log.h"

namespace modelstore {
namespace {

// Names and attributes change only when the catalog does, and then the kernel is told.
constexpr double kForeverSeconds = 1e9;
constexpr uint64_t kStatBlockBytes = 512;
constexpr uint64_t kFsBlockBytes = 4096;
constexpr size_t kMaxNameBytes = 255;

// Only this file of /proc: others wait for locks that a process holds while it waits for us.
std::string ProcessName(pid_t pid) {
  if (pid <= 0) return "";
  const int fd = ::open(("/proc/" + std::to_string(pid) + "/comm").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  char name[64];
  const ssize_t got = ::read(fd, name, sizeof(name));
  ::close(fd);
  return std::string(name, got > 0 ? static_cast<size_t>(got - 1) : 0);  // without the newline
}

// A worker's memory for replies, grown to the largest read it has seen (1 MiB with libfuse 3.14).
MutableByteSpan ReplyBuffer(size_t bytes) {
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(kFsBlockBytes)); }
  };
  thread_local std::unique_ptr<std::byte[], Free> buffer;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    buffer.reset();
    capacity = 0;
    buffer.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t(kFsBlockBytes))));
    capacity = bytes;
  }
  return {buffer.get(), bytes};
}

// Of a read or open that failed.
int ReadErrno(const Status& status) { return status.code() == StatusCode::kResourceExhausted ? ENOMEM : EIO; }

}  // namespace

struct MountOps::OpenFileHandle {
  FileRef file;  // null: of a note, whose text the node has
  NodeInfo node;
  uint32_t pid = 0, uid = 0;
  std::string process;
  std::chrono::steady_clock::time_point opened = std::chrono::steady_clock::now();
  std::atomic<uint64_t> reads{0}, read_bytes{0}, errors{0};

  AccessRecord Record() const {
    AccessRecord record;
    record.model = node.model;
    record.path = node.path;
    record.pid = pid;
    record.uid = uid;
    record.process = process;
    record.file_bytes = node.bytes;
    record.reads = reads;
    record.read_bytes = read_bytes;
    record.errors = errors;
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - opened).count();
    return record;
  }
};

struct MountOps::OpenDirectoryHandle {
  std::vector<NodeEntry> entries;
};

MountOps::MountOps(Catalog& catalog, std::function<void(const AccessRecord&)> on_access)
    : reader_(catalog.reader()), store_dir_(catalog.dir()), on_access_(std::move(on_access)), costs_(catalog.store()) {}

MountOps::~MountOps() = default;

void MountOps::Close(std::unique_ptr<OpenFileHandle> handle) {
  if (!handle) return;
  --counts_.open_files;
  if (on_access_) on_access_(handle->Record());
}

void MountOps::Know(std::vector<ModelRecord> models) {
  const MutexLock lock(mutex_);
  for (ModelRecord& model : models) {
    names_[model.id] = model.name;
    std::string name = model.name;
    models_[std::move(name)] = std::make_shared<const ModelRecord>(std::move(model));
  }
}

void MountOps::Unknow(const std::string& name) {
  const MutexLock lock(mutex_);
  const auto model = models_.find(name);
  if (model == models_.end()) return;
  if (const auto id = names_.find(model->second->id); id != names_.end() && id->second == name) names_.erase(id);
  models_.erase(model);
}

void MountOps::ForgetFiles(const ModelRecord& model) {
  for (const ModelFile& file : model.files) {
    costs_.Forget(file.sha256);
    const MutexLock lock(mutex_);
    reported_.erase(file.sha256);
  }
}

TreeChanges MountOps::ShowModels(std::vector<ModelRecord> models, const FolderTimes& times) {
  TreeChanges changes = tree_.Update(models, times);
  {
    const MutexLock lock(mutex_);
    models_.clear();
    names_.clear();
  }
  Know(std::move(models));
  return changes;
}

TreeChanges MountOps::ChangeModels(const std::vector<std::string>& names, std::vector<ModelRecord> models,
                                   const FolderTimes& times) {
  // What the files of these models cost, and whether they can be read, may be different now.
  for (const std::string& name : names)
    if (const std::shared_ptr<const ModelRecord> before = ModelNamed(name)) ForgetFiles(*before);
  for (const ModelRecord& model : models) ForgetFiles(model);
  TreeChanges changes = tree_.Change(names, models, times);
  for (const std::string& name : names) Unknow(name);
  Know(std::move(models));
  return changes;
}

std::shared_ptr<const ModelRecord> MountOps::ModelNamed(std::string_view name) {
  const MutexLock lock(mutex_);
  const auto it = models_.find(name);
  return it == models_.end() ? nullptr : it->second;
}

std::string MountOps::NameOf(ModelId model) {
  const MutexLock lock(mutex_);
  const auto it = names_.find(model);
  return it == names_.end() ? "" : it->second;
}

void MountOps::ReportOnce(const NodeInfo& file, const Status& status) {
  {
    const MutexLock lock(mutex_);
    if (!reported_.insert(file.sha256).second) return;
  }
  Log(LogLevel::kError, file.model + "/" + file.path + ": " + status.ToString() +
                            " (readers get an input/output error; `modelstore verify " + file.model + "` says more)");
}

MountStats MountOps::stats() const {
  return {counts_.reads.load(), counts_.read_bytes.load(), counts_.errors.load(), counts_.open_files.load()};
}

uint64_t MountOps::StoredBytes(const NodeInfo& file) {
  if (file.text) return file.bytes;
  const Result<uint64_t> stored = costs_.StoredBytes(file.sha256);
  if (stored.ok()) return *stored;
  ReportOnce(file, stored.status());
  return file.bytes;
}

std::string MountOps::Info(const NodeInfo& node, const std::function<bool(const ModelRecord&)>& may_see) {
  const std::shared_ptr<const ModelRecord> known = ModelNamed(node.model);
  if (!known) return "";
  const ModelRecord& model = *known;
  nlohmann::ordered_json info;
  info["model"] = model.name;
  info["fidelity"] = model.fidelity == Fidelity::kExact ? "exact" : "compact";
  if (model.fidelity == Fidelity::kCompact) {
    info["drift"] = model.drift;
    info["drift_kind"] = model.drift_kind == DriftKind::kMoments ? "moments" : "plain";
  }
  if (model.derived) info["recipe"] = model.method;
  const std::shared_ptr<const ModelRecord> base = ModelNamed(NameOf(model.base));
  info["base"] = base && base->id == model.base && may_see(*base) ? nlohmann::ordered_json(base->name)
                                                                  : nlohmann::ordered_json(nullptr);
  uint64_t logical = 0, stored = 0;
  if (node.directory) {
    std::set<Sha256Digest> counted;
    for (const ModelFile& file : model.files) {
      logical += file.bytes;
      NodeInfo of;
      of.model = model.name;
      of.path = file.path;
      of.sha256 = file.sha256;
      of.bytes = file.bytes;
      if (counted.insert(file.sha256).second) stored += StoredBytes(of);
    }
  } else {
    logical = node.bytes;
    stored = StoredBytes(node);
  }
  info["logical_bytes"] = logical;
  info["stored_bytes"] = stored;
  return JsonText(info);
}

// Replies to each kind of request. Nothing may be thrown into libfuse: Guard turns exceptions into errors.
struct MountRequests {
  template <typename Answer>
  static void Guard(fuse_req_t request, const Answer& answer) {
    const Status status = Guarded([&] {
      answer(*static_cast<MountOps*>(fuse_req_userdata(request)));
      return OkStatus();
    });
    if (status.ok()) return;
    if (status.code() != StatusCode::kResourceExhausted)
      Log(LogLevel::kError, "answering a file request ended in an unexpected failure");
    fuse_reply_err(request, ReadErrno(status));
  }

  static struct stat StatOf(MountOps& ops, const NodeInfo& node) {
    struct stat st {};
    st.st_ino = node.id;
    st.st_mode = node.mode | (node.directory ? S_IFDIR : S_IFREG);
    st.st_nlink = 1;  // of a directory: "not counted", as on btrfs
    // An ordinary user's mount is that user's alone.
    const bool is_root = ::geteuid() == 0;
    st.st_uid = is_root ? node.uid : ::geteuid();
    st.st_gid = is_root ? node.gid : ::getegid();
    st.st_blksize = 1 << 20;
    st.st_atim = st.st_mtim = ToTimespec(node.mtime_ns);
    st.st_ctim = ToTimespec(node.ctime_ns);
    if (node.directory) return st;
    st.st_size = static_cast<off_t>(node.bytes);
    // Never 0 for a file with content: to tar and cp that means a hole.
    const uint64_t stored = node.bytes == 0 ? 0 : std::max<uint64_t>(ops.StoredBytes(node), 1);
    st.st_blocks = static_cast<blkcnt_t>((stored + kStatBlockBytes - 1) / kStatBlockBytes);
    return st;
  }

  static fuse_entry_param EntryOf(MountOps& ops, const NodeInfo& node) {
    fuse_entry_param entry{};
    entry.ino = node.id;
    entry.attr = StatOf(ops, node);
    entry.attr_timeout = entry.entry_timeout = kForeverSeconds;
    return entry;
  }

  static void Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    if (std::strlen(name) > kMaxNameBytes) {  // the kernel lets 1,024 bytes through
      fuse_reply_err(request, ENAMETOOLONG);
      return;
    }
    Guard(request, [&](MountOps& ops) {
      for (;;) {
        const Result<NodeInfo> node = ops.tree_.Lookup(parent, name);
        if (!node.ok()) {
          fuse_entry_param absent{};
          absent.entry_timeout = kForeverSeconds;
          if (node.status().code() != StatusCode::kNotFound) {
            fuse_reply_err(request, StatusCodeErrno(node.status().code()));
          } else {
            fuse_reply_entry(request, &absent);
          }
          return;
        }
        const fuse_entry_param entry = EntryOf(ops, *node);
        if (!ops.tree_.Hold(node->id)) continue;  // it was removed meanwhile
        if (fuse_reply_entry(request, &entry) != 0) ops.tree_.Forget(node->id, 1);
        return;
      }
    });
  }

  static void Forget(fuse_req_t request, fuse_ino_t id, uint64_t count) {
    static_cast<MountOps*>(fuse_req_userdata(request))->tree_.Forget(id, count);
    fuse_reply_none(request);
  }

  static void ForgetMany(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
    MountOps& ops = *static_cast<MountOps*>(fuse_req_userdata(request));
    for (size_t i = 0; i < count; ++i) ops.tree_.Forget(forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(request);
  }

  static void GetAttr(fuse_req_t request, fuse_ino_t id, fuse_file_info*) {
    Guard(request, [&](MountOps& ops) {
      const Result<NodeInfo> node = ops.tree_.Get(id);
      if (!node.ok()) {
        fuse_reply_err(request, ESTALE);
        return;
      }
      const struct stat st = StatOf(ops, *node);
      fuse_reply_attr(request, &st, kForeverSeconds);
    });
  }

  static void Open(fuse_req_t request, fuse_ino_t id, fuse_file_info* info) {
    Guard(request, [&](MountOps& ops) {
      if ((info->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(request, EROFS);
        return;
      }
      Result<NodeInfo> node = ops.tree_.Get(id);
      if (!node.ok() || node->directory) {
        fuse_reply_err(request, node.ok() ? EISDIR : ESTALE);
        return;
      }
      Result<FileRef> file = FileRef();
      if (!node->text) file = ops.reader_.OpenFileByHash(node->sha256);
      if (file.ok() && *file && (*file)->bytes() != node->bytes)
        file = Corruption("the model says " + std::to_string(node->bytes) + " bytes, its content has " +
                          std::to_string((*file)->bytes()));
      if (!file.ok()) {
        ++ops.counts_.errors;
        ops.ReportOnce(*node, file.status());
        fuse_reply_err(request, ReadErrno(file.status()));
        return;
      }
      auto handle = std::make_unique<MountOps::OpenFileHandle>();
      handle->file = std::move(*file);
      handle->node = std::move(*node);
      if (ops.on_access_) {
        const fuse_ctx& opener = *fuse_req_ctx(request);
        handle->pid = static_cast<uint32_t>(opener.pid);
        handle->uid = opener.uid;
        handle->process = ProcessName(opener.pid);
      }
      const uint64_t number = info->fh = ops.files_.Add(std::move(handle));
      info->keep_cache = 1;
      info->noflush = 1;
      ++ops.counts_.open_files;
      if (fuse_reply_open(request, info) != 0) {  // the opener was interrupted
        --ops.counts_.open_files;
        ops.files_.Take(number);
      }
    });
  }

  static void Read(fuse_req_t request, fuse_ino_t, size_t size, off_t offset, fuse_file_info* info) {
    Guard(request, [&](MountOps& ops) {
      MountOps::OpenFileHandle& handle = ops.files_.At(info->fh);
      if (handle.node.text) {
        const std::string_view text = *handle.node.text;
        const std::string_view part = text.substr(std::min(static_cast<size_t>(offset), text.size()), size);
        fuse_reply_buf(request, part.data(), part.size());
        return;
      }
      // The kernel keeps what it is given, unless it was told to keep nothing.
      const bool passing = (info->flags & O_DIRECT) == 0;
      std::vector<BlockRef> pieces;  // let go of when the reply has been sent
      const Result<size_t> got =
          ops.reader_.ReadPieces(handle.file, static_cast<uint64_t>(offset), ReplyBuffer(size), passing, &pieces);
      if (!got.ok()) {
        ++ops.counts_.errors;
        ++handle.errors;
        ops.ReportOnce(handle.node, got.status());
        fuse_reply_err(request, ReadErrno(got.status()));
        return;
      }
      ++ops.counts_.reads;
      ops.counts_.read_bytes += *got;
      ++handle.reads;
      handle.read_bytes += *got;
      std::vector<iovec> parts;
      parts.reserve(pieces.size());
      for (const BlockRef& piece : pieces)
        parts.push_back({const_cast<std::byte*>(piece.bytes().data()), piece.bytes().size()});
      fuse_reply_iov(request, parts.data(), static_cast<int>(parts.size()));
    });
  }

  static void Release(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    Guard(request, [&](MountOps& ops) {
      ops.Close(ops.files_.Take(info->fh));
      fuse_reply_err(request, 0);  // nobody waits for it
    });
  }

  static void OpenDir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    Guard(request, [&](MountOps& ops) {
      const uint64_t number = info->fh = ops.directories_.Add(std::make_unique<MountOps::OpenDirectoryHandle>());
      info->keep_cache = 1;
      info->cache_readdir = 1;
      if (fuse_reply_open(request, info) != 0) ops.directories_.Take(number);
    });
  }

  // Entry 0 is ".", 1 is "..", then the children; an offset is the index of the next entry.
  static void ListEntries(fuse_req_t request, fuse_ino_t id, size_t size, off_t offset, fuse_file_info* info,
                          bool plus) {
    Guard(request, [&](MountOps& ops) {
      MountOps::OpenDirectoryHandle& handle = ops.directories_.At(info->fh);
      // Listed when the kernel starts to fill its copy, not at open: an invalidation in between would be lost.
      if (offset == 0) {
        Result<std::vector<NodeEntry>> entries = ops.tree_.List(id);
        if (!entries.ok()) {
          fuse_reply_err(request, ESTALE);
          return;
        }
        handle.entries = std::move(*entries);
      }
      const MutableByteSpan out = ReplyBuffer(size);
      std::vector<NodeId> held;
      held.reserve(handle.entries.size());
      size_t used = 0;
      for (size_t i = static_cast<size_t>(offset); i < handle.entries.size() + 2; ++i) {
        const off_t next = static_cast<off_t>(i + 1);
        char* at = reinterpret_cast<char*>(out.data()) + used;
        const size_t room = size - used;
        const char* name = i == 0 ? "." : i == 1 ? ".." : handle.entries[i - 2].name.c_str();
        size_t needed = 0;
        if (plus && i >= 2) {
          needed = fuse_add_direntry_plus(request, nullptr, 0, name, nullptr, 0);
          if (needed > room) break;
          // What the name stands for by now: the kernel may have been told since the listing began, and would be told
          // the old again.
          const Result<NodeInfo> node = ops.tree_.Lookup(id, name);
          if (!node.ok()) continue;
          const fuse_entry_param entry = EntryOf(ops, *node);
          if (!ops.tree_.Hold(node->id)) continue;
          held.push_back(node->id);
          fuse_add_direntry_plus(request, at, room, name, &entry, next);
        } else {
          // The kernel wants only number and type of these; as entries with attributes they have no node id.
          fuse_entry_param entry{};
          entry.attr.st_ino = i < 2 ? id : handle.entries[i - 2].node.id;
          entry.attr.st_mode = i < 2 || handle.entries[i - 2].node.directory ? S_IFDIR : S_IFREG;
          needed = plus ? fuse_add_direntry_plus(request, at, room, name, &entry, next)
                        : fuse_add_direntry(request, at, room, name, &entry.attr, next);
          if (needed > room) break;
        }
        used += needed;
      }
      if (fuse_reply_buf(request, reinterpret_cast<const char*>(out.data()), used) == 0) return;
      for (const NodeId node : held) ops.tree_.Forget(node, 1);
    });
  }

  static void ReadDir(fuse_req_t request, fuse_ino_t id, size_t size, off_t offset, fuse_file_info* info) {
    ListEntries(request, id, size, offset, info, /*plus=*/false);
  }

  static void ReadDirPlus(fuse_req_t request, fuse_ino_t id, size_t size, off_t offset, fuse_file_info* info) {
    ListEntries(request, id, size, offset, info, /*plus=*/true);
  }

  static void ReleaseDir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    Guard(request, [&](MountOps& ops) {
      ops.directories_.Take(info->fh);
      fuse_reply_err(request, 0);
    });
  }

  // The connection has ended and no request is under way: what is still open was not released.
  static void Destroy(void* context) {
    MountOps& ops = *static_cast<MountOps*>(context);
    ops.directories_.TakeAll();
    try {
      for (auto& handle : ops.files_.TakeAll()) ops.Close(std::move(handle));
    } catch (const std::exception& e) {
      Log(LogLevel::kError, "closing what was open on the mount: " + std::string(e.what()));
    }
  }

  // The room that there is for models: of the file system that the store is on. Nothing limits how many files there
  // are, which 0 says. A mount that calls itself full, as others that are read-only do, sets off alarms.
  static void StatFs(fuse_req_t request, fuse_ino_t) {
    Guard(request, [&](MountOps& ops) {
      struct statvfs st {};
      if (::statvfs(ops.store_dir_.c_str(), &st) != 0) {
        fuse_reply_err(request, errno);
        return;
      }
      st.f_files = st.f_ffree = st.f_favail = 0;
      st.f_namemax = kMaxNameBytes;
      fuse_reply_statfs(request, &st);
    });
  }

  // The protocol of both calls: size 0 asks for the length, a buffer that is too small is ERANGE.
  static void ReplyXattr(fuse_req_t request, std::string_view value, size_t size) {
    if (size == 0) {
      fuse_reply_xattr(request, value.size());
    } else if (size < value.size()) {
      fuse_reply_err(request, ERANGE);
    } else {
      fuse_reply_buf(request, value.data(), value.size());
    }
  }

  // As the daemon's handlers decide (daemon/handlers/caller.h).
  static bool MaySee(fuse_req_t request, const ModelRecord& model) {
    const fuse_ctx& context = *fuse_req_ctx(request);
    Identity who{.uid = context.uid, .gid = context.gid, .groups = {}, .ids = UserNamespace::Own()};
    if (who.uid == 0 || who.Is(::geteuid()) || MaySeeModel(who, model)) return true;
    // Only now, because they come from /proc. A process that cannot be seen from here has none.
    const int count = fuse_req_getgroups(request, 0, nullptr);
    if (count <= 0) return false;
    who.groups.resize(static_cast<size_t>(count));
    const int filled = fuse_req_getgroups(request, count, who.groups.data());
    if (filled < 0) return false;
    who.groups.resize(static_cast<size_t>(std::min(count, filled)));
    return MaySeeModel(who, model);
  }

  static void GetXattr(fuse_req_t request, fuse_ino_t id, const char* name, size_t size) {
    if (name != kInfoXattr && name != kSha256Xattr) {  // security.* is asked for often
      fuse_reply_err(request, ENODATA);
      return;
    }
    Guard(request, [&](MountOps& ops) {
      const Result<NodeInfo> node = ops.tree_.Get(id);
      if (!node.ok()) {
        fuse_reply_err(request, ESTALE);
        return;
      }
      std::string value;
      if (name == kInfoXattr) {
        value = ops.Info(*node, [&](const ModelRecord& model) { return MaySee(request, model); });
      } else if (!node->directory) {
        value = ToHex(node->sha256);
      }
      if (value.empty()) {
        fuse_reply_err(request, ENODATA);
        return;
      }
      ReplyXattr(request, value, size);
    });
  }

  // They are there for who asks for them by name, but not listed: cp -a and rsync -X would put them on copies, where
  // they stay when the copy is changed.
  static void ListXattr(fuse_req_t request, fuse_ino_t, size_t size) { ReplyXattr(request, "", size); }
};

fuse_lowlevel_ops MountOps::Table() {
  fuse_lowlevel_ops ops{};
  ops.destroy = MountRequests::Destroy;
  ops.lookup = MountRequests::Lookup;
  ops.forget = MountRequests::Forget;
  ops.forget_multi = MountRequests::ForgetMany;
  ops.getattr = MountRequests::GetAttr;
  ops.open = MountRequests::Open;
  ops.read = MountRequests::Read;
  ops.release = MountRequests::Release;
  ops.opendir = MountRequests::OpenDir;
  ops.readdir = MountRequests::ReadDir;
  ops.readdirplus = MountRequests::ReadDirPlus;
  ops.releasedir = MountRequests::ReleaseDir;
  ops.statfs = MountRequests::StatFs;
  ops.getxattr = MountRequests::GetXattr;
  ops.listxattr = MountRequests::ListXattr;
  return ops;
}

}  // namespace modelstore
