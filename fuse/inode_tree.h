// The mount's tree of names (layer: fuse; no libfuse here, so that it is tested without a kernel).
//
// Node ids are stable while a version of the content is mounted: a model that is removed and pushed again gets new ids,
// and who has the old one open reads the old bytes. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
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
  uint64_t stored_bytes = 0;  // st_blocks
  uint32_t mode = 0;          // permission bits
  int64_t mtime_ns = 0;
  Sha256Digest sha256{};  // files
  std::string model;      // the model it belongs to; "" above models
};

struct NodeEntry {
  std::string name;
  NodeInfo node;
};

class InodeTree {
 public:
  InodeTree();
  ~InodeTree();

  // A model's files with what each costs (parallel to model.files).
  struct MountedModel {
    ModelRecord record;
    std::vector<uint64_t> stored_bytes;
  };
  // Makes the tree show exactly these models. Returns the (parent, name) pairs whose content changed, for invalidation.
  std::vector<std::pair<NodeId, std::string>> Update(const std::vector<MountedModel>& models);

  // Errors: NotFound, InvalidArgument (not a directory).
  Result<NodeInfo> Lookup(NodeId parent, std::string_view name) const;
  Result<NodeInfo> Get(NodeId id) const;
  Result<std::vector<NodeEntry>> List(NodeId directory) const;  // sorted, without . and ..
  uint64_t NodeCount() const;
  uint64_t TotalBytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
