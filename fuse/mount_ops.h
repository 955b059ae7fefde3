// What the mount answers: libfuse's requests over an inode tree and a read engine (layer: fuse).
//
// Thread-safe: every worker calls into one object. No lock is held while a reply is sent or content is read. A read
// that fails replies EIO and never other bytes; the reason is printed once a file.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "catalog/read/catalog.h"
#include "catalog/read/read_engine.h"
#include "catalog/schema/records.h"
#include "codec/support/mutex.h"
#include "fuse/file_costs.h"
#include "fuse/inode_tree.h"
#include "fuse/mount.h"
#include "fuse/open_handles.h"

struct fuse_lowlevel_ops;

namespace modelstore {

class MountOps {
 public:
  // The catalog outlives this object.
  explicit MountOps(Catalog& catalog, std::function<void(const AccessRecord&)> on_access = nullptr);
  ~MountOps();

  // Requests' userdata must be a MountOps.
  static fuse_lowlevel_ops Table();

  // As InodeTree's Update, Concerned and Change. The caller sees to it that one of them runs at a time.
  TreeChanges ShowModels(std::vector<ModelRecord> models, const FolderTimes& times);
  std::vector<std::string> Concerned(const std::vector<std::string>& names) const { return tree_.Concerned(names); }
  TreeChanges ChangeModels(const std::vector<std::string>& names, std::vector<ModelRecord> models,
                           const FolderTimes& times);

  MountStats stats() const;

 private:
  friend struct MountRequests;  // the C callbacks, in mount_ops.cc
  struct OpenFileHandle;
  struct OpenDirectoryHandle;

  // What the xattrs say of models besides their nodes; null when no model has that name, "" when none has that id.
  std::shared_ptr<const ModelRecord> ModelNamed(std::string_view name);
  std::string NameOf(ModelId model);
  void Know(std::vector<ModelRecord> models);
  void Unknow(const std::string& name);
  // What is kept of its files besides their nodes.
  void ForgetFiles(const ModelRecord& model);
  // What `du` should count. A cost that cannot be read is reported once and counts as the logical size.
  uint64_t StoredBytes(const NodeInfo& file);
  // JSON of user.modelstore.info; "" when the node is above models or its model is gone. `may_see`: whether who asks
  // may see a model, asked about the base.
  std::string Info(const NodeInfo& node, const std::function<bool(const ModelRecord&)>& may_see);
  void ReportOnce(const NodeInfo& file, const Status& status);
  // The last descriptor and mapping of the handle are gone.
  void Close(std::unique_ptr<OpenFileHandle> handle);

  struct Counts {
    std::atomic<uint64_t> reads{0}, read_bytes{0}, errors{0}, open_files{0};
  };

  ReadEngine& reader_;
  const std::string store_dir_;
  const std::function<void(const AccessRecord&)> on_access_;
  Counts counts_;
  FileCosts costs_;
  InodeTree tree_;
  OpenHandles<OpenFileHandle> files_;
  OpenHandles<OpenDirectoryHandle> directories_;
  Mutex mutex_;
  std::map<std::string, std::shared_ptr<const ModelRecord>, std::less<>> models_ MS_GUARDED_BY(mutex_);
  std::map<ModelId, std::string> names_ MS_GUARDED_BY(mutex_);
  std::set<Sha256Digest> reported_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
