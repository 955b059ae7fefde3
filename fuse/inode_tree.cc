#include "fuse/inode_tree.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>

namespace modelstore {
namespace {

constexpr uint32_t kOpenDirectory = 0555;  // above models, and where everyone may read something

// Who may list a directory of a model: its owner, and whoever may read at least one file in it.
struct Access {
  uint32_t mode = kOpenDirectory;
  uint32_t gid = 0;
  bool operator==(const Access&) const = default;
};

// What a name should stand for after an update.
struct Wanted {
  const ModelRecord* model = nullptr;  // null above models
  const ModelFile* file = nullptr;     // null: a directory
  std::map<std::string, Wanted, std::less<>> children;
  Access access = {};  // of a directory
};

std::vector<std::string_view> Components(std::string_view path) {
  std::vector<std::string_view> out;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    out.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

// A name the kernel can show; anything else could only come from a damaged store.
bool Showable(const std::vector<std::string_view>& components) {
  return std::all_of(components.begin(), components.end(), [](std::string_view c) {
    return !c.empty() && c != "." && c != ".." && c.size() <= 255 && c.find('\0') == std::string_view::npos;
  });
}

// The directory at `path` below `top`, created where missing; null when a file is in the way.
Wanted* Descend(Wanted* top, std::span<const std::string_view> path, const ModelRecord* model) {
  for (const std::string_view component : path) {
    if (top->file) return nullptr;
    top = &top->children.try_emplace(std::string(component), Wanted{model, nullptr, {}}).first->second;
  }
  return top->file ? nullptr : top;
}

// The files below, as far as others than the owner matter.
struct Readers {
  bool others = false, one_group = true;
  std::optional<uint32_t> group;  // of the files that a group may read

  void Add(const Readers& more) {
    others |= more.others;
    one_group &= more.one_group && (!group || !more.group || *group == *more.group);
    if (!group) group = more.group;
  }
};

// Sets the access of the model's directories from `wanted` down. A directory has one group: where files of several are
// not for everyone, only the owner gets in.
Readers SetAccess(Wanted& wanted) {
  Readers readers;
  if (wanted.file) {
    readers.others = (wanted.file->mode & 0004) != 0;
    if ((wanted.file->mode & 0040) != 0) readers.group = wanted.file->gid;
    return readers;
  }
  for (auto& [name, child] : wanted.children) readers.Add(SetAccess(child));
  const bool group = readers.group && readers.one_group;
  if (group) wanted.access.gid = *readers.group;
  if (!readers.others && !wanted.children.empty()) wanted.access.mode = group ? 0550 : 0500;
  return readers;
}

// When the newest model below was published.
int64_t NewestModel(const Wanted& wanted) {
  int64_t newest = wanted.model ? wanted.model->created_ns : 0;
  if (!wanted.model)
    for (const auto& [name, child] : wanted.children) newest = std::max(newest, NewestModel(child));
  return newest;
}

struct Node {
  NodeInfo info;
  ModelId model = 0;
  uint64_t generation = 0;  // the update that last placed it; older than the tree's: no name leads here any more
  std::map<std::string, NodeId, std::less<>> children;
  std::atomic<uint64_t> held{0};
};

// A version of a file's content under its place in the model: equal keys may share a node id.
struct VersionKey {
  ModelId model;
  std::string path;
  Sha256Digest sha256;
  uint64_t bytes;
  uint32_t mode;
  uint32_t uid, gid;
  int64_t mtime_ns;
  auto operator<=>(const VersionKey&) const = default;
};

VersionKey KeyOf(const ModelRecord& model, const ModelFile& file) {
  return {model.id, file.path, file.sha256, file.bytes, file.mode & 0444, model.owner_uid, file.gid, file.mtime_ns};
}

}  // namespace

struct InodeTree::Impl {
  mutable std::shared_mutex mutex;
  std::unordered_map<NodeId, std::unique_ptr<Node>> nodes;
  std::map<VersionKey, NodeId> versions;  // of the current generation's files
  std::map<VersionKey, NodeId> previous_versions;
  NodeId next_id = kRootNode;
  uint64_t generation = 0;
  uint64_t live_nodes = 0, live_bytes = 0;
  TreeChanges changes;
  std::vector<NodeId> replaced;

  Node* Find(NodeId id) const {
    const auto it = nodes.find(id);
    return it == nodes.end() ? nullptr : it->second.get();
  }

  Node& NewNode() {
    auto node = std::make_unique<Node>();
    node->info.id = next_id++;
    Node& placed = *node;
    nodes.emplace(placed.info.id, std::move(node));
    return placed;
  }

  void Place(Node& node) {
    node.generation = generation;
    ++live_nodes;
    live_bytes += node.info.bytes;
  }

  NodeId CreateFile(const Wanted& wanted) {
    const VersionKey key = KeyOf(*wanted.model, *wanted.file);
    Node* node = nullptr;
    if (const auto it = previous_versions.find(key); it != previous_versions.end()) {
      node = Find(it->second);
      if (node && node->generation == generation) node = nullptr;  // already has a name
    }
    if (!node) {
      node = &NewNode();
      node->info.bytes = key.bytes;
      node->info.mode = key.mode;
      node->info.uid = key.uid;
      node->info.gid = key.gid;
      node->info.mtime_ns = key.mtime_ns;
      node->info.sha256 = key.sha256;
      node->info.path = key.path;
      node->model = key.model;
    }
    KeepFile(*node, wanted);
    return node->info.id;
  }

  void KeepFile(Node& node, const Wanted& wanted) {
    node.info.model = wanted.model->name;
    Place(node);
    versions.emplace(KeyOf(*wanted.model, *wanted.file), node.info.id);
  }

  NodeId CreateDirectory(const Wanted& wanted) {
    Node& node = NewNode();
    node.info.directory = true;
    node.info.mode = wanted.access.mode;
    node.info.gid = wanted.access.gid;
    if (wanted.model) {
      node.info.model = wanted.model->name;
      node.info.uid = wanted.model->owner_uid;
      node.model = wanted.model->id;
    }
    FillDirectory(node, wanted, /*report=*/false);
    return node.info.id;
  }

  bool Matches(const Node& node, const Wanted& wanted) const {
    if (node.info.directory != (wanted.file == nullptr)) return false;
    if (node.model != (wanted.model ? wanted.model->id : 0)) return false;
    if (node.info.uid != (wanted.model ? wanted.model->owner_uid : 0)) return false;
    // The kernel keeps a directory's attributes: one that others may enter is another one.
    if (node.info.directory)
      return Access{node.info.mode, node.info.gid} == wanted.access &&
             (!wanted.model || node.info.model == wanted.model->name);
    const VersionKey key = KeyOf(*wanted.model, *wanted.file);
    return node.info.sha256 == key.sha256 && node.info.bytes == key.bytes && node.info.mode == key.mode &&
           node.info.gid == key.gid && node.info.mtime_ns == key.mtime_ns;
  }

  void FillDirectory(Node& node, const Wanted& wanted, bool report) {
    Place(node);
    bool changed = false;
    for (auto it = node.children.begin(); it != node.children.end();) {
      if (wanted.children.contains(it->first)) {
        ++it;
        continue;
      }
      changed = true;
      if (report) changes.names.emplace_back(node.info.id, it->first);
      replaced.push_back(it->second);
      it = node.children.erase(it);
    }
    for (const auto& [name, child] : wanted.children) {
      const auto it = node.children.find(name);
      if (it != node.children.end()) {
        Node& old = *Find(it->second);
        if (old.generation != generation && Matches(old, child)) {
          if (child.file) {
            KeepFile(old, child);
          } else {
            FillDirectory(old, child, report);
          }
          continue;
        }
        replaced.push_back(it->second);
      }
      changed = true;
      if (report) changes.names.emplace_back(node.info.id, name);
      node.children[name] = child.file ? CreateFile(child) : CreateDirectory(child);
    }
    const int64_t mtime_ns = NewestModel(wanted);
    changed |= mtime_ns != node.info.mtime_ns;
    node.info.mtime_ns = mtime_ns;
    if (changed && report) changes.directories.push_back(node.info.id);
  }

  // Drops what lost its name in this update and is not known to the kernel.
  void Bury(NodeId id) {
    Node* node = Find(id);
    if (!node || node->generation == generation) return;
    for (const auto& [name, child] : node->children) Bury(child);
    node->children.clear();
    if (node->held.load() == 0) {
      nodes.erase(id);
    } else if (node->info.directory) {
      changes.directories.push_back(id);  // somebody may stand in it
    }
  }
};

InodeTree::InodeTree() : impl_(std::make_unique<Impl>()) {
  Node& root = impl_->NewNode();
  root.info.directory = true;
  root.info.mode = kOpenDirectory;
  root.held = 1;
  impl_->live_nodes = 1;
}

InodeTree::~InodeTree() = default;

TreeChanges InodeTree::Update(const std::vector<ModelRecord>& models) {
  Wanted top;
  for (const ModelRecord& model : models) {
    const std::vector<std::string_view> name = Components(model.name);
    if (!Showable(name)) continue;
    Wanted* above = Descend(&top, std::span(name).first(name.size() - 1), nullptr);
    if (!above || above->model) continue;
    const auto [it, added] = above->children.try_emplace(std::string(name.back()), Wanted{&model, nullptr, {}});
    if (!added) continue;
    for (const ModelFile& file : model.files) {
      const std::vector<std::string_view> path = Components(file.path);
      if (!Showable(path)) continue;
      if (Wanted* parent = Descend(&it->second, std::span(path).first(path.size() - 1), &model))
        parent->children.try_emplace(std::string(path.back()), Wanted{&model, &file, {}});
    }
    SetAccess(it->second);
  }

  const std::unique_lock lock(impl_->mutex);
  ++impl_->generation;
  impl_->live_nodes = impl_->live_bytes = 0;
  impl_->previous_versions = std::exchange(impl_->versions, {});
  impl_->FillDirectory(*impl_->Find(kRootNode), top, /*report=*/true);
  for (const NodeId id : std::exchange(impl_->replaced, {})) impl_->Bury(id);
  impl_->previous_versions.clear();
  return std::exchange(impl_->changes, {});
}

Result<NodeInfo> InodeTree::Lookup(NodeId parent, std::string_view name) const {
  const std::shared_lock lock(impl_->mutex);
  const Node* node = impl_->Find(parent);
  if (!node) return NotFound("no node " + std::to_string(parent));
  if (!node->info.directory) return InvalidArgument(node->info.path + " is not a directory");
  const auto it = node->children.find(name);
  if (it == node->children.end()) return NotFound("no name " + std::string(name));
  return impl_->Find(it->second)->info;
}

Result<NodeInfo> InodeTree::Get(NodeId id) const {
  const std::shared_lock lock(impl_->mutex);
  const Node* node = impl_->Find(id);
  if (!node) return NotFound("no node " + std::to_string(id));
  return node->info;
}

Result<std::vector<NodeEntry>> InodeTree::List(NodeId directory) const {
  const std::shared_lock lock(impl_->mutex);
  const Node* node = impl_->Find(directory);
  if (!node) return NotFound("no node " + std::to_string(directory));
  if (!node->info.directory) return InvalidArgument(node->info.path + " is not a directory");
  std::vector<NodeEntry> entries;
  entries.reserve(node->children.size());
  for (const auto& [name, id] : node->children) entries.push_back({name, impl_->Find(id)->info});
  return entries;
}

bool InodeTree::Hold(NodeId id) {
  const std::shared_lock lock(impl_->mutex);
  Node* node = impl_->Find(id);
  if (!node) return false;
  ++node->held;
  return true;
}

void InodeTree::Forget(NodeId id, uint64_t count) {
  {
    const std::shared_lock lock(impl_->mutex);
    Node* node = impl_->Find(id);
    if (!node || id == kRootNode) return;
    uint64_t held = node->held.load();
    while (!node->held.compare_exchange_weak(held, held - std::min(held, count))) {
    }
    if (held > count || node->generation == impl_->generation) return;
  }
  const std::unique_lock lock(impl_->mutex);
  Node* node = impl_->Find(id);
  if (node && node->held.load() == 0 && node->generation != impl_->generation) impl_->nodes.erase(id);
}

uint64_t InodeTree::NodeCount() const {
  const std::shared_lock lock(impl_->mutex);
  return impl_->live_nodes;
}

uint64_t InodeTree::TotalBytes() const {
  const std::shared_lock lock(impl_->mutex);
  return impl_->live_bytes;
}

}  // namespace modelstore
