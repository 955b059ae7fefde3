// The mount's tree of names (layer: fuse; no libfuse here, so that it is tested without a kernel).
//
// A node id is made of what the node stands for: of a file the model's id, the path in it and the content's hash, of a
// model's directory the id and the path, of a directory above models its path. So ids are the same in every process
// that serves the store, they survive a rename of the model, and other content has another id. A name that vanished can
// no longer be looked up, but its node lives until the kernel forgets it (Hold, Forget), because it may still be open
// or mapped. Thread-safe; no call blocks on anything but the tree's lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "catalog/schema/records.h"
#include "codec/support/clock.h"
#include "codec/support/status.h"

namespace modelstore {

using NodeId = uint64_t;
inline constexpr NodeId kRootNode = 1;

struct NodeInfo {
  NodeId id = 0;
  bool directory = false;
  uint64_t bytes = 0;
  uint32_t mode = 0;      // permission bits; a model's directories: for who may read at least one file in them
  uint32_t uid = 0;       // of the model's owner; 0 above models
  uint32_t gid = 0;       // files: the group of the source; a model's directories: the one that all readable files have
  TimeNs mtime_ns = 0;    // directories: when what is below was published, renamed or removed last
  TimeNs ctime_ns = 0;    // files: when they came into the model as they are
  Sha256Digest sha256{};  // files
  std::string model;      // the model it belongs to; "" above models
  std::string path;       // files: within the model
  // Of the note beside the files of a compact model (fidelity_note.h), which is stored nowhere: what it says.
  std::shared_ptr<const std::string> text;
};

struct NodeEntry {
  std::string name;
  NodeInfo node;
};

// What an update made wrong of what the kernel may remember.
struct TreeChanges {
  // Names that appeared, vanished or stand for something else now, with the directory they are in. Of what appeared or
  // vanished together the topmost, and those in directories that the kernel knows.
  std::vector<std::pair<NodeId, std::string>> names;
  // Directories with other names in them, other attributes or no name of their own any more.
  std::vector<NodeId> directories;
  // With other attributes. Of a changed model all of them: what they cost may be another.
  std::vector<NodeId> files;
  // The directories in which files and directories with other attributes have their names.
  std::vector<NodeId> parents;

  bool empty() const { return names.empty() && directories.empty() && files.empty(); }
};

// Directories above models ("" is the root), with the time at which a model below was removed or renamed last.
using FolderTimes = std::map<std::string, int64_t, std::less<>>;

class InodeTree {
 public:
  InodeTree();
  ~InodeTree();

  // Makes the tree show exactly these models. Returns what the kernel has to forget.
  TreeChanges Update(const std::vector<ModelRecord>& models, const FolderTimes& times = {});
  // The names that a change of these models can concern: their own, those of the directories above them, and what is
  // shown below them. A name is a model's or a directory's above models; one may have become the other.
  std::vector<std::string> Concerned(const std::vector<std::string>& names) const;
  // Makes the tree show, of `names`, exactly these models, and leaves all others as they are. `times` has the
  // directories above `names`.
  TreeChanges Change(const std::vector<std::string>& names, const std::vector<ModelRecord>& models,
                     const FolderTimes& times);

  // Errors: NotFound, InvalidArgument (not a directory).
  Result<NodeInfo> Lookup(NodeId parent, std::string_view name) const;
  Result<NodeInfo> Get(NodeId id) const;
  Result<std::vector<NodeEntry>> List(NodeId directory) const;  // sorted, without . and ..
  // The kernel has learnt of the node once more. False when the node is gone: look its name up again.
  bool Hold(NodeId id);
  // The kernel gave `count` of its holds back.
  void Forget(NodeId id, uint64_t count);

  // Files and directories that can be looked up, or that the kernel still knows.
  uint64_t NodeCount() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
