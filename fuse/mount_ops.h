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
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "catalog/read/read_engine.h"
#include "catalog/schema/records.h"
#include "fuse/file_costs.h"
#include "fuse/inode_tree.h"
#include "fuse/mount.h"

struct fuse_lowlevel_ops;

namespace modelstore {

class MountOps {
 public:
  // Both outlive this object.
  MountOps(ReadEngine& reader, const KvStore& store, std::function<void(const AccessRecord&)> on_access = nullptr)
      : reader_(reader), on_access_(std::move(on_access)), costs_(store) {}

  // Requests' userdata must be a MountOps.
  static fuse_lowlevel_ops Table();

  // As InodeTree::Update.
  TreeChanges ShowModels(std::vector<ModelRecord> models);

  MountStats stats() const;

 private:
  friend struct MountRequests;  // the C callbacks, in mount_ops.cc

  // What the xattrs say of models besides their nodes.
  struct Models {
    std::map<std::string, ModelRecord, std::less<>> by_name;
    std::map<ModelId, std::string> names;
  };

  std::shared_ptr<const Models> models();
  // What `du` should count. A cost that cannot be read is reported once and counts as the logical size.
  uint64_t StoredBytes(const NodeInfo& file);
  // JSON of user.modelstore.info; "" when the node is above models or its model is gone.
  std::string Info(const NodeInfo& node);
  void ReportOnce(const NodeInfo& file, const Status& status);

  struct Counts {
    std::atomic<uint64_t> reads{0}, read_bytes{0}, errors{0}, open_files{0};
  };

  ReadEngine& reader_;
  const std::function<void(const AccessRecord&)> on_access_;
  Counts counts_;
  FileCosts costs_;
  InodeTree tree_;
  std::mutex mutex_;  // of what follows
  std::shared_ptr<const Models> models_ = std::make_shared<Models>();
  std::set<Sha256Digest> reported_;
};

}  // namespace modelstore
