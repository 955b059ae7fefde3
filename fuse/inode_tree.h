// The mount's tree of names (layer: fuse; no libfuse here, so that it is tested without a kernel).
//
// A file's node id stands for one version of its content: it survives a rename of the model, and never comes back once
// the content changed. A name that vanished can no longer be looked up, but its node lives until the kernel forgets it
// (Hold, Forget), because it may still be open or mapped. Thread-safe; no call blocks on anything but the tree's lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catalog/schema/records.h"
#include "codec/support/status.h"

namespace modelstore {

using NodeId = uint64_t;
inline constexpr NodeId kRootNode = 1;

struct NodeInfo {
  NodeId id = 0;
  bool directory = false;
  uint64_t bytes = 0;
  uint32_t mode = 0;  // permission bits; a model's directories: for who may read at least one file in them
  uint32_t uid = 0;   // of the model's owner; 0 above models
  uint32_t gid = 0;   // files: the group of the source; a model's directories: the one that all readable files have
  int64_t mtime_ns = 0;
  Sha256Digest sha256{};  // files
  std::string model;      // the model it belongs to; "" above models
  std::string path;       // files: within the model
};

struct NodeEntry {
  std::string name;
  NodeInfo node;
};

// What an update made wrong of what the kernel may remember.
struct TreeChanges {
  // Names that appeared, vanished or stand for something else now, with the directory they are in; the topmost of each
  // change.
  std::vector<std::pair<NodeId, std::string>> names;
  // Directories with other names in them, another time or no name of their own any more.
  std::vector<NodeId> directories;
};

class InodeTree {
 public:
  InodeTree();
  ~InodeTree();

  // Makes the tree show exactly these models. Returns what the kernel has to forget.
  TreeChanges Update(const std::vector<ModelRecord>& models);

  // Errors: NotFound, InvalidArgument (not a directory).
  Result<NodeInfo> Lookup(NodeId parent, std::string_view name) const;
  Result<NodeInfo> Get(NodeId id) const;
  Result<std::vector<NodeEntry>> List(NodeId directory) const;  // sorted, without . and ..
  // The kernel has learnt of the node once more. False when the node is gone: look its name up again.
  bool Hold(NodeId id);
  // The kernel gave `count` of its holds back.
  void Forget(NodeId id, uint64_t count);

  // Of what can be looked up now: files and directories; bytes of the files.
  uint64_t NodeCount() const;
  uint64_t TotalBytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
