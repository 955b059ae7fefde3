#include "fuse/inode_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "catalog/read/fidelity_note.h"

namespace modelstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

ModelFile File(const std::string& path, uint8_t content, uint64_t bytes = 10) {
  ModelFile file;
  file.path = path;
  file.sha256.fill(std::byte{content});
  file.bytes = bytes;
  file.mode = 0644;
  file.mtime_ns = 5;
  return file;
}

ModelRecord Model(ModelId id, const std::string& name, std::vector<ModelFile> files, int64_t created_ns = 100) {
  ModelRecord model;
  model.id = id;
  model.name = name;
  model.files = std::move(files);
  model.created_ns = created_ns;
  return model;
}

std::vector<std::string> Names(const InodeTree& tree, NodeId directory) {
  std::vector<std::string> names;
  const auto entries = tree.List(directory);
  EXPECT_TRUE(entries.ok());
  if (entries.ok())
    for (const NodeEntry& entry : *entries) names.push_back(entry.name);
  return names;
}

// The node at a path, or id 0.
NodeInfo At(const InodeTree& tree, const std::vector<std::string>& path) {
  NodeInfo node;
  node.id = kRootNode;
  for (const std::string& name : path) {
    const auto found = tree.Lookup(node.id, name);
    if (!found.ok()) return {};
    node = *found;
  }
  return node;
}

TEST(InodeTree, StartsAsAnEmptyRoot) {
  InodeTree tree;
  const auto root = tree.Get(kRootNode);
  ASSERT_TRUE(root.ok());
  EXPECT_TRUE(root->directory);
  EXPECT_EQ(root->mode, 0555u);
  EXPECT_THAT(Names(tree, kRootNode), IsEmpty());
  EXPECT_EQ(tree.NodeCount(), 1u);
}

TEST(InodeTree, NestsNamesAndPaths) {
  InodeTree tree;
  const auto changes = tree.Update({Model(1, "team/llama", {File("config.json", 1, 7), File("sub/dir/w.bin", 2, 9)}),
                                    Model(2, "team/llama-ft", {}), Model(3, "zeta", {File("z", 3)})});
  EXPECT_THAT(changes.names, UnorderedElementsAre(Pair(kRootNode, "team"), Pair(kRootNode, "zeta")));
  EXPECT_THAT(Names(tree, kRootNode), ElementsAre("team", "zeta"));
  EXPECT_THAT(Names(tree, At(tree, {"team"}).id), ElementsAre("llama", "llama-ft"));
  EXPECT_THAT(Names(tree, At(tree, {"team", "llama-ft"}).id), IsEmpty());
  EXPECT_THAT(Names(tree, At(tree, {"team", "llama"}).id), ElementsAre("config.json", "sub"));

  const NodeInfo file = At(tree, {"team", "llama", "sub", "dir", "w.bin"});
  EXPECT_FALSE(file.directory);
  EXPECT_EQ(file.bytes, 9u);
  EXPECT_EQ(file.mode, 0444u);  // never writable, whatever the record says
  EXPECT_EQ(file.mtime_ns, 5);
  EXPECT_EQ(file.model, "team/llama");
  EXPECT_EQ(file.path, "sub/dir/w.bin");
  EXPECT_EQ(At(tree, {"team"}).model, "");
  EXPECT_EQ(At(tree, {"team", "llama", "sub"}).model, "team/llama");
  EXPECT_EQ(tree.NodeCount(), 10u);
}

TEST(InodeTree, RefusesWhatIsNotThere) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("f", 1)})});
  const NodeId file = At(tree, {"m", "f"}).id;
  EXPECT_EQ(tree.Lookup(kRootNode, "n").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tree.Lookup(file, "x").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(tree.List(file).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(tree.Get(999).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(tree.Lookup(999, "x").status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(tree.Hold(999));
}

TEST(InodeTree, KeepsIdsOfWhatStays) {
  InodeTree tree;
  const std::vector<ModelRecord> models = {Model(1, "a/x", {File("f", 1)}), Model(2, "a/y", {File("f", 2)})};
  tree.Update(models);
  const NodeId file = At(tree, {"a", "x", "f"}).id, folder = At(tree, {"a", "x"}).id;
  EXPECT_THAT(tree.Update(models).names, IsEmpty());
  EXPECT_THAT(tree.Update({models[0]}).names, ElementsAre(Pair(At(tree, {"a"}).id, "y")));
  EXPECT_EQ(At(tree, {"a", "x", "f"}).id, file);
  EXPECT_EQ(At(tree, {"a", "x"}).id, folder);
}

TEST(InodeTree, ReportsOnlyTheTopmostChange) {
  InodeTree tree;
  tree.Update({Model(1, "a/b/c", {File("d/e", 1)})});
  EXPECT_THAT(tree.Update({}).names, ElementsAre(Pair(kRootNode, "a")));
  EXPECT_THAT(tree.Update({Model(2, "a/b/c", {File("d/e", 1)})}).names, ElementsAre(Pair(kRootNode, "a")));
  EXPECT_THAT(tree.Update({Model(2, "a/b/c", {File("d/e", 1)}), Model(3, "a/b/d", {})}).names,
              ElementsAre(Pair(At(tree, {"a", "b"}).id, "d")));
}

TEST(InodeTree, ANodeStandsForAVersionOfTheContent) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("same", 1), File("other", 2)})});
  const NodeId same = At(tree, {"m", "same"}).id, other = At(tree, {"m", "other"}).id, m = At(tree, {"m"}).id;
  EXPECT_THAT(tree.Update({Model(1, "m", {File("same", 1), File("other", 3)})}).names, ElementsAre(Pair(m, "other")));
  EXPECT_EQ(At(tree, {"m", "same"}).id, same);
  EXPECT_NE(At(tree, {"m", "other"}).id, other);
  // Removed and pushed again: another model, so new ids although the bytes are the same.
  EXPECT_THAT(tree.Update({Model(2, "m", {File("same", 1), File("other", 3)})}).names,
              ElementsAre(Pair(kRootNode, "m")));
  EXPECT_NE(At(tree, {"m", "same"}).id, same);
  EXPECT_NE(At(tree, {"m"}).id, m);
}

TEST(InodeTree, IdsAreTheSameInEveryProcessAndOtherForOtherContent) {
  const std::vector<ModelRecord> models = {Model(1, "a/x", {File("f", 1), File("sub/f", 1)}),
                                           Model(2, "a/y", {File("f", 1)}), Model(3, "b", {File("f", 9)})};
  InodeTree one, other;
  one.Update(models);
  // In another order, one after the other, with something else before.
  other.Update({Model(4, "zzz", {File("f", 7)})});
  for (auto model = models.rbegin(); model != models.rend(); ++model) other.Change({model->name}, {*model}, {});
  std::set<NodeId> ids = {kRootNode};
  const std::vector<std::vector<std::string>> paths = {
      {"a"},           {"a", "x"}, {"a", "x", "f"}, {"a", "x", "sub"}, {"a", "y"}, {"a", "x", "sub", "f"},
      {"a", "y", "f"}, {"b"},      {"b", "f"}};
  for (const auto& path : paths) {
    EXPECT_EQ(At(one, path).id, At(other, path).id) << path.back();
    EXPECT_LT(At(one, path).id, uint64_t{1} << 53) << path.back();  // exact in a float64
    EXPECT_TRUE(ids.insert(At(one, path).id).second) << path.back();
  }
  // Another content of the same size and times is another file, whoever served the model before.
  InodeTree later;
  later.Update({Model(3, "b", {File("f", 8)}, 100)});
  EXPECT_NE(At(later, {"b", "f"}).id, At(one, {"b", "f"}).id);
  EXPECT_EQ(At(later, {"b"}).id, At(one, {"b"}).id);
}

TEST(InodeTree, FilesChangedWhenTheirModelWasPublished) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("f", 1)}, 100)});
  const NodeInfo file = At(tree, {"m", "f"});
  EXPECT_EQ(file.mtime_ns, 5);
  EXPECT_EQ(file.ctime_ns, 100);
  const TreeChanges changes = tree.Update({Model(1, "m", {File("f", 1)}, 200)});
  EXPECT_THAT(changes.names, IsEmpty());
  EXPECT_THAT(changes.files, ElementsAre(file.id));
  EXPECT_EQ(At(tree, {"m", "f"}).ctime_ns, 200);
}

TEST(InodeTree, AChangeOfOneModelLeavesTheOthers) {
  InodeTree tree;
  tree.Update({Model(1, "a/x", {File("f", 1)}, 100), Model(2, "a/y", {File("f", 2)}, 200), Model(3, "b", {}, 300)});
  const NodeId a = At(tree, {"a"}).id;
  TreeChanges changes = tree.Change({"a/z"}, {Model(4, "a/z", {File("f", 4)}, 400)}, {{"", 0}, {"a", 0}});
  EXPECT_THAT(changes.names, ElementsAre(Pair(a, "z")));
  EXPECT_THAT(changes.directories, UnorderedElementsAre(kRootNode, a));
  EXPECT_THAT(Names(tree, a), ElementsAre("x", "y", "z"));
  EXPECT_EQ(tree.NodeCount(), 9u);
  // Removed: its folders have the time of that.
  changes = tree.Change({"a/x"}, {}, {{"", 500}, {"a", 500}});
  EXPECT_THAT(changes.names, ElementsAre(Pair(a, "x")));
  EXPECT_EQ(At(tree, {"a"}).mtime_ns, 500);
  EXPECT_EQ(tree.Get(kRootNode)->mtime_ns, 500);
  // Renamed, both names at once.
  changes = tree.Change({"a/y", "c/y"}, {Model(2, "c/y", {File("f", 2)}, 200)}, {{"", 600}, {"a", 600}, {"c", 600}});
  EXPECT_THAT(changes.names, IsSupersetOf({Pair(a, "y"), Pair(kRootNode, "c")}));
  EXPECT_EQ(At(tree, {"c"}).mtime_ns, 600);
  // The last below a folder.
  changes = tree.Change({"a/z"}, {}, {{"", 700}, {"a", 0}});
  EXPECT_THAT(changes.names, ElementsAre(Pair(kRootNode, "a")));
  EXPECT_THAT(Names(tree, kRootNode), ElementsAre("b", "c"));
  EXPECT_EQ(tree.NodeCount(), 5u);
  // And back, younger than the folder's old time.
  tree.Change({"a/z"}, {Model(5, "a/z", {}, 650)}, {{"", 700}, {"a", 0}});
  EXPECT_EQ(At(tree, {"a"}).mtime_ns, 650);
}

TEST(InodeTree, AChangeConcernsWhatMayBeInItsWay) {
  InodeTree tree;
  tree.Update({Model(1, "a/b/c", {}), Model(2, "a/b/d", {}), Model(3, "a/bc", {}), Model(4, "e", {})});
  EXPECT_THAT(tree.Concerned({"a/b"}), ElementsAre("a", "a/b", "a/b/c", "a/b/d"));
  EXPECT_THAT(tree.Concerned({"e/f/g"}), ElementsAre("e", "e/f", "e/f/g"));
  // Heard in the wrong order: `e` was removed before `e/f` was pushed.
  tree.Change(tree.Concerned({"e/f"}), {Model(5, "e/f", {})}, {});
  EXPECT_THAT(Names(tree, At(tree, {"e"}).id), ElementsAre("f"));
  EXPECT_THAT(tree.Change({"e"}, {}, {}).names, IsEmpty());
  EXPECT_THAT(Names(tree, At(tree, {"e"}).id), ElementsAre("f"));
}

TEST(InodeTree, ACompactModelHasANoteThatSaysSo) {
  ModelRecord model = Model(1, "m", {File("a", 1), File("b", 2)});
  model.fidelity = Fidelity::kCompact;
  model.drift_kind = DriftKind::kPlain;
  model.drift = 0.25;
  model.method = "rank 4";
  model.files[1].mode = 0440;
  InodeTree tree;
  tree.Update({model});
  EXPECT_THAT(Names(tree, At(tree, {"m"}).id), ElementsAre(kFidelityFile, "a", "b"));
  const NodeInfo note = At(tree, {"m", std::string(kFidelityFile)});
  ASSERT_NE(note.text, nullptr);
  EXPECT_EQ(note.bytes, note.text->size());
  EXPECT_THAT(*note.text, HasSubstr("not the original"));
  EXPECT_THAT(*note.text, HasSubstr("rank 4"));
  EXPECT_EQ(note.mode, 0440u);
  EXPECT_EQ(At(tree, {"m", "a"}).text, nullptr);
  // Another drift is another file.
  model.drift = 0.5;
  tree.Update({model});
  EXPECT_NE(At(tree, {"m", std::string(kFidelityFile)}).id, note.id);
  // Exact again; and one that has such a file has no other.
  model.fidelity = Fidelity::kExact;
  tree.Update({model});
  EXPECT_THAT(Names(tree, At(tree, {"m"}).id), ElementsAre("a", "b"));
  model.fidelity = Fidelity::kCompact;
  model.files.insert(model.files.begin(), File(std::string(kFidelityFile), 7));
  tree.Update({model});
  EXPECT_EQ(At(tree, {"m", std::string(kFidelityFile)}).text, nullptr);
}

TEST(InodeTree, OwnerAndGroupAreOfTheVersion) {
  InodeTree tree;
  ModelFile file = File("w", 1);
  file.gid = 50;
  ModelRecord model = Model(1, "team/m", {file, File("sub/x", 2)});
  model.owner_uid = 1000;
  tree.Update({model});
  const NodeInfo folder = At(tree, {"team", "m"}), before = At(tree, {"team", "m", "w"});
  EXPECT_EQ(At(tree, {"team"}).uid, 0u);
  EXPECT_EQ(folder.uid, 1000u);
  EXPECT_EQ(At(tree, {"team", "m", "sub"}).uid, 1000u);
  EXPECT_EQ(before.uid, 1000u);
  EXPECT_EQ(before.gid, 50u);
  EXPECT_THAT(tree.Update({model}).names, IsEmpty());

  model.files[0].gid = 51;
  TreeChanges changes = tree.Update({model});
  EXPECT_THAT(changes.names, IsEmpty());
  EXPECT_THAT(changes.files, ElementsAre(before.id));
  EXPECT_EQ(At(tree, {"team", "m", "w"}).id, before.id);
  EXPECT_EQ(At(tree, {"team", "m", "w"}).gid, 51u);

  model.owner_uid = 1001;
  changes = tree.Update({model});
  EXPECT_THAT(changes.names, IsEmpty());
  EXPECT_THAT(changes.directories, UnorderedElementsAre(folder.id, At(tree, {"team", "m", "sub"}).id));
  EXPECT_THAT(changes.files, UnorderedElementsAre(before.id, At(tree, {"team", "m", "sub", "x"}).id));
  EXPECT_EQ(At(tree, {"team", "m"}).uid, 1001u);
  EXPECT_EQ(At(tree, {"team", "m", "sub", "x"}).uid, 1001u);
}

TEST(InodeTree, DirectoriesAreForWhoMayReadAFileInThem) {
  const auto file = [](const std::string& path, uint32_t mode, uint32_t gid) {
    ModelFile made = File(path, 1);
    made.mode = mode;
    made.gid = gid;
    return made;
  };
  InodeTree tree;
  tree.Update({Model(1, "in/mixed",
                     {file("open/f", 0644, 7), file("open/secret", 0600, 8), file("team/f", 0640, 7),
                      file("team/secret", 0600, 8), file("teams/f", 0640, 7), file("teams/g", 0440, 8),
                      file("secret/deep/f", 0600, 7)}),
               Model(2, "in/secret", {file("f", 0700, 7)}), Model(3, "in/team", {file("a/f", 0640, 7)}),
               Model(4, "in/empty", {}),
               Model(5, "in/without",
                     {file("one/f", 0404, 7), file("one/g", 0440, 8), file("one/h", 0400, 9), file("two/f", 0404, 7),
                      file("two/g", 0404, 8), file("none/f", 0404, 7), file("none/g", 0440, 7), file("open/f", 0404, 7),
                      file("open/g", 0444, 8)})});
  const auto expect = [&](const std::vector<std::string>& path, uint32_t mode, uint32_t gid) {
    EXPECT_EQ(At(tree, path).mode, mode) << path.back();
    EXPECT_EQ(At(tree, path).gid, gid) << path.back();
  };
  expect({"in"}, 0555, 0);
  expect({"in", "mixed"}, 0555, 0);
  expect({"in", "mixed", "open"}, 0555, 7);
  expect({"in", "mixed", "team"}, 0550, 7);
  expect({"in", "mixed", "teams"}, 0500, 0);
  expect({"in", "mixed", "secret"}, 0500, 0);
  expect({"in", "mixed", "secret", "deep"}, 0500, 0);
  expect({"in", "secret"}, 0500, 0);
  expect({"in", "team"}, 0550, 7);
  expect({"in", "empty"}, 0555, 0);
  expect({"in", "without", "one"}, 0505, 7);
  expect({"in", "without", "two"}, 0500, 0);
  expect({"in", "without", "none"}, 0555, 7);
  expect({"in", "without", "open"}, 0555, 8);

  // The kernel is told of another mode.
  tree.Update({Model(1, "m", {file("f", 0644, 7), file("g", 0600, 7)})});
  const NodeId folder = At(tree, {"m"}).id, kept = At(tree, {"m", "g"}).id;
  const TreeChanges changes = tree.Update({Model(1, "m", {file("f", 0640, 7), file("g", 0600, 7)})});
  EXPECT_THAT(changes.names, IsEmpty());
  EXPECT_THAT(changes.directories, ElementsAre(folder));
  EXPECT_THAT(changes.files, ElementsAre(At(tree, {"m", "f"}).id));
  expect({"m"}, 0550, 7);
  EXPECT_EQ(At(tree, {"m"}).id, folder);
  EXPECT_EQ(At(tree, {"m", "g"}).id, kept);
}

TEST(InodeTree, AnUpdateKeepsTheFolderAndTheFilesThatStay) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("gone", 1), File("same", 2), File("w", 3)})});
  const NodeInfo folder = At(tree, {"m"}), same = At(tree, {"m", "same"}), old = At(tree, {"m", "w"});
  EXPECT_TRUE(tree.Hold(old.id));
  EXPECT_THAT(tree.Update({Model(1, "m", {File("new", 4), File("same", 2), File("w", 5)}, 200)}).names,
              UnorderedElementsAre(Pair(folder.id, "gone"), Pair(folder.id, "new"), Pair(folder.id, "w")));
  EXPECT_EQ(At(tree, {"m"}).id, folder.id);
  EXPECT_EQ(At(tree, {"m"}).mtime_ns, 200);
  EXPECT_EQ(At(tree, {"m", "same"}).id, same.id);
  EXPECT_NE(At(tree, {"m", "w"}).id, old.id);
  // Who has the old version open still finds it.
  EXPECT_EQ(tree.Get(old.id)->sha256, old.sha256);
  tree.Forget(old.id, 1);
  EXPECT_FALSE(tree.Get(old.id).ok());
}

TEST(InodeTree, ARenameKeepsFileIds) {
  // Sorted before and after the old name, below it and elsewhere.
  const std::vector<std::pair<std::string, std::vector<std::string>>> targets = {
      {"a", {"a", "f"}}, {"z", {"z", "f"}}, {"m/deeper", {"m", "deeper", "f"}}, {"n/m", {"n", "m", "f"}}};
  for (const auto& [to, path] : targets) {
    InodeTree tree;
    tree.Update({Model(1, "m", {File("f", 1)})});
    const NodeId file = At(tree, {"m", "f"}).id;
    const NodeId folder = At(tree, {"m"}).id;
    tree.Update({Model(1, to, {File("f", 1)})});
    EXPECT_EQ(At(tree, path).id, file) << to;
    EXPECT_EQ(At(tree, path).model, to);
    EXPECT_EQ(At(tree, {"m", "f"}).id, 0u) << to;
    EXPECT_NE(At(tree, {"m"}).id, folder) << to;
    EXPECT_TRUE(tree.Get(folder).ok()) << to;  // who stands in it stays in the model
  }
}

TEST(InodeTree, ARemovedFileLivesUntilItIsForgotten) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("held", 1), File("unknown", 2)})});
  const NodeId held = At(tree, {"m", "held"}).id, unknown = At(tree, {"m", "unknown"}).id, m = At(tree, {"m"}).id;
  EXPECT_TRUE(tree.Hold(held));
  EXPECT_TRUE(tree.Hold(held));
  EXPECT_TRUE(tree.Hold(m));
  tree.Update({});
  EXPECT_EQ(At(tree, {"m"}).id, 0u);
  EXPECT_FALSE(tree.Get(unknown).ok());
  ASSERT_TRUE(tree.Get(held).ok());
  EXPECT_EQ(tree.Get(held)->model, "m");
  // Whoever stands in the removed folder sees it empty.
  EXPECT_THAT(Names(tree, m), IsEmpty());
  EXPECT_FALSE(tree.Lookup(m, "held").ok());
  tree.Forget(held, 1);
  EXPECT_TRUE(tree.Get(held).ok());
  tree.Forget(held, 1);
  EXPECT_FALSE(tree.Get(held).ok());
  tree.Forget(m, 1);
  EXPECT_FALSE(tree.Get(m).ok());
  EXPECT_EQ(tree.NodeCount(), 1u);
}

TEST(InodeTree, ForgettingALiveFileKeepsIt) {
  InodeTree tree;
  tree.Update({Model(1, "m", {File("f", 1)})});
  const NodeId file = At(tree, {"m", "f"}).id;
  tree.Hold(file);
  tree.Forget(file, 5);  // more than was held: never below zero
  EXPECT_EQ(At(tree, {"m", "f"}).id, file);
  tree.Forget(kRootNode, 1000);
  EXPECT_TRUE(tree.Get(kRootNode).ok());
}

TEST(InodeTree, SurvivesRecordsThatContradictThemselves) {
  InodeTree tree;
  tree.Update({Model(1, "a",
                     {File("x", 1), File("x/y", 2), File("../up", 3), File("/abs", 4), File("a//b", 5), File("ok", 6),
                      File(std::string("nul\0", 4), 7), File(std::string(256, 'n'), 8)}),
               Model(2, "a/b", {File("f", 9)}), Model(3, "..", {}), Model(4, "", {}),
               Model(1, "twin", {File("x", 1)})});
  EXPECT_THAT(Names(tree, kRootNode), ElementsAre("a", "twin"));
  EXPECT_THAT(Names(tree, At(tree, {"a"}).id), ElementsAre("ok", "x"));
  EXPECT_FALSE(At(tree, {"a", "x"}).directory);
  EXPECT_NE(At(tree, {"a", "x"}).id, At(tree, {"twin", "x"}).id);
}

TEST(InodeTree, ADirectoryIsAsNewAsItsNewestModel) {
  InodeTree tree;
  tree.Update({Model(1, "a/x", {File("f", 1)}, 100), Model(2, "a/y", {}, 300)});
  const NodeId a = At(tree, {"a"}).id, x = At(tree, {"a", "x"}).id;
  EXPECT_EQ(At(tree, {"a"}).mtime_ns, 300);
  EXPECT_EQ(At(tree, {"a", "x"}).mtime_ns, 100);
  EXPECT_EQ(tree.Get(kRootNode)->mtime_ns, 300);
  TreeChanges changes =
      tree.Update({Model(1, "a/x", {File("f", 1)}, 100), Model(2, "a/y", {}, 300), Model(3, "a/z", {}, 500)});
  EXPECT_EQ(At(tree, {"a"}).mtime_ns, 500);
  EXPECT_EQ(tree.Get(kRootNode)->mtime_ns, 500);  // a model picker looks at the topmost folder alone
  EXPECT_THAT(changes.names, ElementsAre(Pair(a, "z")));
  EXPECT_THAT(changes.directories, UnorderedElementsAre(kRootNode, a));
  // Published again with the same files: no name changes, times do.
  changes = tree.Update({Model(1, "a/x", {File("f", 1)}, 600), Model(2, "a/y", {}, 300), Model(3, "a/z", {}, 500)});
  EXPECT_THAT(changes.names, IsEmpty());
  EXPECT_THAT(changes.directories, UnorderedElementsAre(kRootNode, a, x));
  EXPECT_EQ(At(tree, {"a", "x"}).mtime_ns, 600);
}

TEST(InodeTree, ADirectoryWithOtherNamesInItIsReported) {
  InodeTree tree;
  EXPECT_THAT(tree.Update({Model(1, "a/x", {File("f", 1), File("sub/g", 2)})}).directories, ElementsAre(kRootNode));
  const NodeId a = At(tree, {"a"}).id, x = At(tree, {"a", "x"}).id, sub = At(tree, {"a", "x", "sub"}).id;
  EXPECT_THAT(tree.Update({Model(1, "a/x", {File("f", 1), File("sub/g", 2), File("sub/h", 3)})}).directories,
              ElementsAre(sub));
  EXPECT_THAT(tree.Update({Model(1, "a/x", {File("sub/g", 2), File("sub/h", 3)})}).directories, ElementsAre(x));
  EXPECT_THAT(tree.Update({Model(1, "a/x", {File("sub/g", 2), File("sub/h", 3)})}).directories, IsEmpty());
  // Those that lost their own name too, as far as the kernel knows them: somebody may stand in one.
  tree.Hold(x);
  EXPECT_THAT(tree.Update({Model(2, "a/y", {})}).directories, UnorderedElementsAre(a, x));
}

TEST(InodeTree, ReadersAndUpdatesTogether) {
  InodeTree tree;
  const std::vector<ModelRecord> even = {Model(1, "a/x", {File("f", 1)}), Model(2, "b", {File("g", 2)})};
  const std::vector<ModelRecord> odd = {Model(1, "c", {File("f", 1)}), Model(3, "a", {File("h", 3)})};
  tree.Update(even);
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  std::atomic<uint64_t> wrong{0}, seen{0};
  for (int t = 0; t < 3; ++t)
    readers.emplace_back([&] {
      while (!stop) {
        const auto entries = tree.List(kRootNode);
        for (const NodeEntry& entry : *entries) {
          if (!tree.Hold(entry.node.id)) continue;
          const auto info = tree.Get(entry.node.id);
          if (!info.ok() || info->id != entry.node.id) ++wrong;
          tree.Forget(entry.node.id, 1);
          ++seen;
        }
      }
    });
  for (int i = 0; i < 200 || seen == 0; ++i) tree.Update(i % 2 ? even : odd);
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0u);
  tree.Update({});
  EXPECT_EQ(tree.NodeCount(), 1u);
}

}  // namespace
}  // namespace modelstore
