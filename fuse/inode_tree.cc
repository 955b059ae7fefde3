#include "fuse/inode_tree.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <set>
#include <type_traits>
#include <unordered_map>

#include "catalog/read/fidelity_note.h"
#include "codec/support/bytes.h"
#include "codec/support/hash.h"
#include "codec/support/mutex.h"

namespace modelstore {
namespace {

constexpr uint32_t kOpenDirectory = 0555;  // above models, and where everyone may read something

// Who may list a directory of a model: its owner, and whoever may read at least one file in it.
struct Access {
  uint32_t mode = kOpenDirectory;
  uint32_t gid = 0;
  bool operator==(const Access&) const = default;
};

// What a model's name, or one below it, should stand for.
struct Wanted {
  const ModelFile* file = nullptr;                    // null: a directory
  std::shared_ptr<const std::string> text = nullptr;  // of a note
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
Wanted* Descend(Wanted* top, std::span<const std::string_view> path) {
  for (const std::string_view component : path) {
    if (top->file) return nullptr;
    top = &top->children.try_emplace(std::string(component)).first->second;
  }
  return top->file ? nullptr : top;
}

// The files below, as far as others than the owner matter.
struct Readers {
  bool everyone = false;        // of one file at least
  std::set<uint32_t> groups;    // of files that their group may read
  std::set<uint32_t> excluded;  // of files that all may read but their group

  void Add(Readers more) {
    everyone |= more.everyone;
    groups.merge(more.groups);
    excluded.merge(more.excluded);
  }
};

Readers ReadersOf(const ModelFile& file) {
  const bool group = (file.mode & 0040) != 0, others = (file.mode & 0004) != 0;
  Readers readers;
  readers.everyone = group && others;
  if (group) readers.groups.insert(file.gid);
  if (others && !group) readers.excluded.insert(file.gid);
  return readers;
}

// A directory has one group, to let in or to keep out: where more would be needed, only the owner gets in.
Access AccessFor(const Readers& readers) {
  const auto the_only = [](const std::set<uint32_t>& groups) { return groups.size() == 1 ? *groups.begin() : 0; };
  const auto may_read = [&](uint32_t group) { return readers.groups.contains(group); };
  if (readers.everyone || std::any_of(readers.excluded.begin(), readers.excluded.end(), may_read))
    return {kOpenDirectory, the_only(readers.groups)};
  if (readers.excluded.size() == 1) return {0505, the_only(readers.excluded)};
  if (readers.excluded.empty() && readers.groups.size() == 1) return {0550, the_only(readers.groups)};
  return {0500, 0};
}

// Sets the access of the model's directories from `wanted` down.
Readers SetAccess(Wanted& wanted) {
  if (wanted.file) return ReadersOf(*wanted.file);
  Readers readers;
  for (auto& [name, child] : wanted.children) readers.Add(SetAccess(child));
  if (!wanted.children.empty()) wanted.access = AccessFor(readers);
  return readers;
}

// `note` may be null. Both are pointed into.
Wanted WantedOf(const ModelRecord& model, const FidelityNote* note) {
  Wanted top;
  const auto add = [&](const ModelFile& file) -> Wanted* {
    const std::vector<std::string_view> path = Components(file.path);
    if (!Showable(path)) return nullptr;
    Wanted* parent = Descend(&top, std::span(path).first(path.size() - 1));
    if (!parent) return nullptr;
    Wanted& wanted = parent->children.try_emplace(std::string(path.back())).first->second;
    if (!wanted.file && wanted.children.empty()) wanted.file = &file;
    return &wanted;
  };
  for (const ModelFile& file : model.files) add(file);
  if (note)
    if (Wanted* wanted = add(note->file)) wanted->text = std::make_shared<const std::string>(note->text);
  SetAccess(top);
  return top;
}

// What a node stands for; its id is made of that. The first bytes of the hashed text keep the kinds apart.
Hash128 IdentityOfFolder(std::string_view path) { return HashBytes(AsBytes("above models\n" + std::string(path))); }

Hash128 IdentityOf(ModelId model, std::string_view path, const ModelFile* file) {
  std::string text = file ? "file\n" : "directory\n";
  text += std::to_string(model) + "\n";
  if (file) text.append(reinterpret_cast<const char*>(file->sha256.data()), file->sha256.size());
  return HashBytes(AsBytes(text.append(path)));
}

// Programs keep inode numbers in a float64 (JavaScript, JSON): 53 bits.
constexpr int kIdShift = 64 - 53;

struct Node {
  NodeInfo info;
  Hash128 identity;
  NodeId parent = 0;
  std::string name;        // in the parent
  ModelId model = 0;       // 0 above models
  int64_t changed_ns = 0;  // above models: when one below was removed or renamed last
  bool placed = false;     // a name leads here
  uint64_t made_in = 0;    // the generation of the tree that made it
  std::map<std::string, NodeId, std::less<>> children;
  std::atomic<uint64_t> held{0};

  bool is_folder() const { return info.directory && model == 0; }
};

// All nodes and names, without a lock.
struct Nodes {
  std::unordered_map<NodeId, std::unique_ptr<Node>> nodes;
  std::map<std::string, NodeId, std::less<>> shown;  // models by name
  uint64_t generation = 0;
  // Of the update under way.
  bool report_all_files = false;
  TreeChanges changes;
  std::vector<NodeId> detached;
  std::set<std::pair<int, NodeId>> unsettled;  // folders, by depth

  Node* Find(NodeId id) const {
    const auto it = nodes.find(id);
    return it == nodes.end() ? nullptr : it->second.get();
  }

  Node& Root() const { return *Find(kRootNode); }

  Node& NewNode(NodeId id, const Hash128& identity) {
    auto node = std::make_unique<Node>();
    node->info.id = id;
    node->identity = identity;
    node->made_in = generation;
    Node& made = *node;
    nodes.emplace(id, std::move(node));
    return made;
  }

  // The node for that identity: the one of before, if the kernel still knows it and no name leads there. Two nodes
  // never share an id: whatever comes second takes another one.
  Node& NodeFor(const Hash128& identity) {
    for (uint64_t wish = identity.low;; wish += uint64_t{1} << kIdShift) {
      const NodeId id = wish >> kIdShift;
      if (id <= kRootNode) continue;
      Node* node = Find(id);
      if (!node) return NewNode(id, identity);
      if (node->identity == identity && !node->placed) return *node;
    }
  }

  bool KnownToKernel(const Node& node) const { return node.made_in != generation; }

  // The name leads to the node from now on.
  void Place(Node& parent, const std::string& name, Node& node) {
    ReportName(parent, name);
    parent.children[name] = node.info.id;
    node.parent = parent.info.id;
    node.name = name;
    node.placed = true;
    if (KnownToKernel(node)) ReportAttributes(node);
  }

  void ReportName(const Node& parent, const std::string& name) {
    if (!KnownToKernel(parent)) return;
    changes.names.emplace_back(parent.info.id, name);
    changes.directories.push_back(parent.info.id);
  }

  void ReportAttributes(const Node& node) {
    (node.info.directory ? changes.directories : changes.files).push_back(node.info.id);
    if (node.info.id != kRootNode) changes.parents.push_back(node.parent);
  }

  // No name leads to it or to what is below any more.
  void Detach(Node& node) {
    const auto forget = [&](auto& self, Node& gone) -> void {
      for (const auto& [name, child] : gone.children) {
        if (gone.held.load() != 0) changes.names.emplace_back(gone.info.id, name);
        self(self, *Find(child));
      }
      gone.children.clear();
      gone.placed = false;
      detached.push_back(gone.info.id);
    };
    Node& parent = *Find(node.parent);
    ReportName(parent, node.name);
    parent.children.erase(node.name);
    forget(forget, node);
  }

  // True when the value is another one.
  template <typename T>
  static bool Set(T& field, const std::type_identity_t<T>& value) {
    if (field == value) return false;
    field = value;
    return true;
  }

  void FillFile(Node& node, const ModelRecord& model, const ModelFile& file,
                const std::shared_ptr<const std::string>& text) {
    NodeInfo& info = node.info;
    node.model = model.id;
    info.text = text;
    info.sha256 = file.sha256;
    info.path = file.path;
    info.model = model.name;
    bool changed = Set(info.bytes, file.bytes);
    changed |= Set(info.mode, file.mode & kFileModeBits);
    changed |= Set(info.uid, model.owner_uid);
    changed |= Set(info.gid, file.gid);
    changed |= Set(info.mtime_ns, file.mtime_ns);
    changed |= Set(info.ctime_ns, file.published_ns != 0 ? file.published_ns : model.created_ns);
    if ((changed || report_all_files) && node.placed) ReportAttributes(node);
  }

  // `path`: in the model, "" or with a slash at its end.
  void FillDirectory(Node& node, const ModelRecord& model, const Wanted& wanted, const std::string& path) {
    NodeInfo& info = node.info;
    info.directory = true;
    node.model = model.id;
    info.model = model.name;
    bool changed = Set(info.mode, wanted.access.mode);
    changed |= Set(info.gid, wanted.access.gid);
    changed |= Set(info.uid, model.owner_uid);
    changed |= Set(info.mtime_ns, model.created_ns);
    changed |= Set(info.ctime_ns, model.created_ns);
    if (changed && node.placed) ReportAttributes(node);
    for (auto it = node.children.begin(); it != node.children.end();) {
      Node& child = *Find((it++)->second);
      if (!wanted.children.contains(child.name)) Detach(child);
    }
    for (const auto& [name, child] : wanted.children) {
      const Hash128 identity = IdentityOf(model.id, path + name, child.file);
      const auto it = node.children.find(name);
      Node* old = it == node.children.end() ? nullptr : Find(it->second);
      const bool stays = old && old->identity == identity;
      if (old && !stays) Detach(*old);
      Node& now = stays ? *old : NodeFor(identity);
      if (child.file) {
        FillFile(now, model, *child.file, child.text);
      } else {
        FillDirectory(now, model, child, path + name + "/");
      }
      if (!stays) Place(node, name, now);
    }
  }

  int DepthOf(const Node& folder) const {
    int depth = 0;
    for (NodeId id = folder.info.id; id != kRootNode; id = Find(id)->parent) ++depth;
    return depth;
  }

  void Unsettle(const Node& folder) { unsettled.emplace(DepthOf(folder), folder.info.id); }

  void Hide(const std::string& name) {
    const auto it = shown.find(name);
    if (it == shown.end()) return;
    Node& node = *Find(it->second);
    shown.erase(it);
    Unsettle(*Find(node.parent));
    Detach(node);
  }

  // The folder in which the last of `components` is, created where missing; null when a model is in the way.
  Node* FolderAbove(std::span<const std::string_view> components) {
    Node* folder = &Root();
    std::string path;
    for (const std::string_view component : components.first(components.size() - 1)) {
      path += (path.empty() ? "" : "/") + std::string(component);
      if (const auto it = folder->children.find(component); it != folder->children.end()) {
        folder = Find(it->second);
        if (!folder->is_folder()) return nullptr;
        continue;
      }
      Node& made = NodeFor(IdentityOfFolder(path));
      made.info.directory = true;
      made.info.mode = kOpenDirectory;
      made.changed_ns = 0;
      Place(*folder, std::string(component), made);
      folder = &made;
    }
    return folder;
  }

  void Show(const ModelRecord& model) {
    const std::vector<std::string_view> components = Components(model.name);
    if (!Showable(components)) return;
    const Hash128 identity = IdentityOf(model.id, "", nullptr);
    if (const auto it = shown.find(model.name); it != shown.end() && Find(it->second)->identity != identity)
      Hide(model.name);
    Node* folder = FolderAbove(components);
    if (!folder) return;
    Unsettle(*folder);
    const auto it = folder->children.find(components.back());
    Node* there = it == folder->children.end() ? nullptr : Find(it->second);
    if (there && there->is_folder()) return;
    Node& node = there ? *there : NodeFor(identity);
    // The base is named only to who may see it, and this is for everyone who sees the model.
    const std::optional<FidelityNote> note = MakeFidelityNote(model, kBaseElsewhere);
    FillDirectory(node, model, WantedOf(model, note ? &*note : nullptr), "");
    if (there) return;
    Place(*folder, std::string(components.back()), node);
    shown.emplace(model.name, node.info.id);
  }

  // Of the folders in which something changed, from the deepest up: one without models goes, others are as new as the
  // newest below.
  void Settle() {
    while (!unsettled.empty()) {
      const auto [depth, id] = *unsettled.rbegin();
      unsettled.erase(std::prev(unsettled.end()));
      Node& folder = *Find(id);
      if (!folder.placed) continue;
      if (id != kRootNode) unsettled.emplace(depth - 1, folder.parent);
      if (id != kRootNode && folder.children.empty()) {
        Detach(folder);
        continue;
      }
      TimeNs newest = folder.changed_ns;
      for (const auto& [name, child] : folder.children) newest = std::max(newest, Find(child)->info.mtime_ns);
      if (Set(folder.info.mtime_ns, newest)) ReportAttributes(folder);
      folder.info.ctime_ns = newest;
    }
  }

  void SetTimes(const FolderTimes& times) {
    for (const auto& [path, changed_ns] : times) {
      Node* folder = &Root();
      if (!path.empty()) {
        for (const std::string_view component : Components(path)) {
          const auto it = folder->children.find(component);
          folder = it == folder->children.end() ? nullptr : Find(it->second);
          if (!folder) break;
        }
      }
      if (!folder || !folder->is_folder() || !Set(folder->changed_ns, changed_ns)) continue;
      Unsettle(*folder);
    }
  }

  TreeChanges Apply(const std::vector<std::string>& gone, const std::vector<ModelRecord>& models,
                    const FolderTimes& times, bool all_files) {
    ++generation;
    report_all_files = all_files;
    for (const std::string& name : gone) Hide(name);
    for (const ModelRecord& model : models) Show(model);
    SetTimes(times);
    Settle();
    for (const NodeId id : std::exchange(detached, {})) {
      Node* node = Find(id);
      if (!node || node->placed) continue;
      if (node->held.load() == 0) {
        nodes.erase(id);
      } else if (node->info.directory) {
        changes.directories.push_back(id);  // somebody may stand in it
      }
    }
    return Compacted();
  }

  // Each once, and nothing of nodes that are no more or that nobody has seen.
  TreeChanges Compacted() {
    TreeChanges seen = std::exchange(changes, {});
    const auto sort = [&](auto& list, const auto& id_of) {
      std::sort(list.begin(), list.end());
      list.erase(std::unique(list.begin(), list.end()), list.end());
      std::erase_if(list, [&](const auto& entry) {
        const Node* node = Find(id_of(entry));
        return !node || !KnownToKernel(*node);
      });
    };
    sort(seen.names, [](const auto& entry) { return entry.first; });
    sort(seen.directories, [](NodeId id) { return id; });
    sort(seen.files, [](NodeId id) { return id; });
    sort(seen.parents, [](NodeId id) { return id; });
    return seen;
  }
};

}  // namespace

struct InodeTree::Impl {
  mutable SharedMutex mutex;
  Nodes tree MS_GUARDED_BY(mutex);
};

InodeTree::InodeTree() : impl_(std::make_unique<Impl>()) {
  const WriterLock lock(impl_->mutex);
  Node& root = impl_->tree.NewNode(kRootNode, IdentityOfFolder(""));
  root.info.directory = true;
  root.info.mode = kOpenDirectory;
  root.held = 1;
  root.placed = true;
}

InodeTree::~InodeTree() = default;

TreeChanges InodeTree::Update(const std::vector<ModelRecord>& models, const FolderTimes& times) {
  std::set<std::string_view> names;
  for (const ModelRecord& model : models) names.insert(model.name);
  const WriterLock lock(impl_->mutex);
  std::vector<std::string> gone;
  for (const auto& [name, node] : impl_->tree.shown)
    if (!names.contains(name)) gone.push_back(name);
  return impl_->tree.Apply(gone, models, times, /*all_files=*/false);
}

std::vector<std::string> InodeTree::Concerned(const std::vector<std::string>& names) const {
  std::set<std::string> concerned(names.begin(), names.end());
  const ReaderLock lock(impl_->mutex);
  for (const std::string& name : names) {
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
      concerned.insert(name.substr(0, slash));
    const std::string below = name + "/";
    for (auto it = impl_->tree.shown.lower_bound(below); it != impl_->tree.shown.end() && it->first.starts_with(below);
         ++it)
      concerned.insert(it->first);
  }
  return {concerned.begin(), concerned.end()};
}

TreeChanges InodeTree::Change(const std::vector<std::string>& names, const std::vector<ModelRecord>& models,
                              const FolderTimes& times) {
  std::set<std::string_view> there;
  for (const ModelRecord& model : models) there.insert(model.name);
  std::vector<std::string> gone;
  for (const std::string& name : names)
    if (!there.contains(name)) gone.push_back(name);
  const WriterLock lock(impl_->mutex);
  return impl_->tree.Apply(gone, models, times, /*all_files=*/true);
}

Result<NodeInfo> InodeTree::Lookup(NodeId parent, std::string_view name) const {
  const ReaderLock lock(impl_->mutex);
  const Node* node = impl_->tree.Find(parent);
  if (!node) return NotFound("no node " + std::to_string(parent));
  if (!node->info.directory) return InvalidArgument(node->info.path + " is not a directory");
  const auto it = node->children.find(name);
  if (it == node->children.end()) return NotFound("no name " + std::string(name));
  return impl_->tree.Find(it->second)->info;
}

Result<NodeInfo> InodeTree::Get(NodeId id) const {
  const ReaderLock lock(impl_->mutex);
  const Node* node = impl_->tree.Find(id);
  if (!node) return NotFound("no node " + std::to_string(id));
  return node->info;
}

Result<std::vector<NodeEntry>> InodeTree::List(NodeId directory) const {
  const ReaderLock lock(impl_->mutex);
  const Node* node = impl_->tree.Find(directory);
  if (!node) return NotFound("no node " + std::to_string(directory));
  if (!node->info.directory) return InvalidArgument(node->info.path + " is not a directory");
  std::vector<NodeEntry> entries;
  entries.reserve(node->children.size());
  for (const auto& [name, id] : node->children) entries.push_back({name, impl_->tree.Find(id)->info});
  return entries;
}

bool InodeTree::Hold(NodeId id) {
  const ReaderLock lock(impl_->mutex);
  Node* node = impl_->tree.Find(id);
  if (!node) return false;
  ++node->held;
  return true;
}

void InodeTree::Forget(NodeId id, uint64_t count) {
  {
    const ReaderLock lock(impl_->mutex);
    Node* node = impl_->tree.Find(id);
    if (!node || id == kRootNode) return;
    uint64_t held = node->held.load();
    while (!node->held.compare_exchange_weak(held, held - std::min(held, count))) {
    }
    if (held > count || node->placed) return;
  }
  const WriterLock lock(impl_->mutex);
  Node* node = impl_->tree.Find(id);
  if (node && node->held.load() == 0 && !node->placed) impl_->tree.nodes.erase(id);
}

uint64_t InodeTree::NodeCount() const {
  const ReaderLock lock(impl_->mutex);
  return impl_->tree.nodes.size();
}

}  // namespace modelstore
