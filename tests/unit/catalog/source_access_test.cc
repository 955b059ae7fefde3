// What a source file's mode, access control list and folders let others do.
#include "catalog/write/source_access.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

constexpr uid_t kAnn = 1001, kBob = 1002;
constexpr gid_t kLab = 2001, kStaff = 2002;
constexpr uint16_t kOwner = 0x01, kUser = 0x02, kOwningGroup = 0x04, kGroup = 0x08, kMask = 0x10, kOthers = 0x20;

struct stat Inode(mode_t mode, gid_t group = kLab) {
  struct stat st {};
  st.st_mode = mode;
  st.st_uid = kAnn;
  st.st_gid = group;
  return st;
}

struct Entry {
  uint16_t tag, bits;
  uint32_t id = 0xffffffff;
};

Bytes List(const std::vector<Entry>& entries) {
  Bytes out = {std::byte{2}, std::byte{0}, std::byte{0}, std::byte{0}};
  const auto add = [&](uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
  };
  for (const Entry& entry : entries) {
    add(entry.tag, 2);
    add(entry.bits, 2);
    add(entry.id, 4);
  }
  return out;
}

uint32_t ModeOf(const struct stat& st, const Bytes& list = {}, const std::vector<InodeAccess>& folders = {}) {
  return EffectiveMode(st, InodeAccess(st, list), folders);
}

InodeAccess Folder(mode_t mode, gid_t group, const Bytes& list = {}) { return {Inode(mode, group), list}; }

TEST(SourceAccess, AModeAloneStaysButForWriting) {
  for (const mode_t mode : {0644u, 0600u, 0755u, 0640u, 0444u, 0750u, 0711u, 0000u, 0604u})
    EXPECT_EQ(ModeOf(Inode(mode)), mode & 0555) << std::oct << mode;
}

TEST(SourceAccess, TheMaskIsNoRightOfTheGroup) {
  // setfacl -m u:bob:r of a file 0600: the mode then says 0640.
  EXPECT_EQ(ModeOf(Inode(0640), List({{kOwner, 6}, {kUser, 4, kBob}, {kOwningGroup, 0}, {kMask, 4}, {kOthers, 0}})),
            0400u);
  // The mask takes from the group what its entry gives.
  EXPECT_EQ(ModeOf(Inode(0600), List({{kOwner, 6}, {kOwningGroup, 4}, {kGroup, 4, kStaff}, {kMask, 0}, {kOthers, 0}})),
            0400u);
  EXPECT_EQ(ModeOf(Inode(0640), List({{kOwner, 6}, {kUser, 4, kBob}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 0}})),
            0440u);
  EXPECT_EQ(ModeOf(Inode(0644), List({{kOwner, 6}, {kOwningGroup, 4}, {kOthers, 4}})), 0444u) << "a list without mask";
}

TEST(SourceAccess, WhomAListNamesToKeepOutStaysOut) {
  // Bob may be in the group or not: neither gets what he has not.
  EXPECT_EQ(ModeOf(Inode(0644), List({{kOwner, 6}, {kUser, 0, kBob}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 4}})),
            0400u);
  // A group that is named is one of the others here.
  EXPECT_EQ(ModeOf(Inode(0644), List({{kOwner, 6}, {kOwningGroup, 4}, {kGroup, 0, kStaff}, {kMask, 4}, {kOthers, 4}})),
            0440u);
  EXPECT_EQ(ModeOf(Inode(0644), List({{kOwner, 6}, {kUser, 0, kAnn}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 4}})),
            0444u)
      << "the owner's own entry goes before";
}

TEST(SourceAccess, AListThatIsNotUnderstoodLetsNobodyIn) {
  EXPECT_EQ(ModeOf(Inode(0644), Bytes(4, std::byte{9})), 0400u);
  EXPECT_EQ(ModeOf(Inode(0644), Bytes(5, std::byte{2})), 0400u);
  EXPECT_EQ(ModeOf(Inode(0644), List({})), 0400u);
}

// Names in it that cannot be guessed are what such a folder protects.
TEST(SourceAccess, AFolderWhoseNamesAreShownKeepsOutWhoMayNotListIt) {
  const auto mode = [](mode_t file, mode_t folder) {
    InodeAccess listed = Folder(folder, kLab);
    listed.MarkListed();
    return ModeOf(Inode(file), {}, {listed, Folder(0711, kStaff)});
  };
  EXPECT_EQ(mode(0644, 0711), 0400u);
  EXPECT_EQ(mode(0644, 0751), 0440u);
  EXPECT_EQ(mode(0644, 0755), 0444u);
  EXPECT_EQ(mode(0644, 0744), 0400u);
}

TEST(SourceAccess, AFolderKeepsOutWhoMayNotSearchIt) {
  const auto mode = [](mode_t file, std::vector<InodeAccess> folders) { return ModeOf(Inode(file), {}, folders); };
  EXPECT_EQ(mode(0644, {Folder(0755, 0), Folder(0700, kLab), Folder(0755, kLab)}), 0400u);
  EXPECT_EQ(mode(0755, {Folder(0700, kLab)}), 0500u);
  EXPECT_EQ(mode(0644, {Folder(0750, kLab)}), 0440u) << "the same group";
  EXPECT_EQ(mode(0644, {Folder(0750, kStaff)}), 0400u) << "another group";
  EXPECT_EQ(mode(0640, {Folder(0755, kStaff)}), 0440u) << "as others";
  EXPECT_EQ(mode(0644, {Folder(0711, kStaff)}), 0444u) << "searching needs no reading";
  EXPECT_EQ(mode(0644, {Folder(0744, kLab)}), 0400u) << "reading is not searching";
  EXPECT_EQ(mode(0644, {Folder(02750, kLab)}), 0440u) << "set-group";
  // Members of the folder's group are kept out, whatever others may.
  EXPECT_EQ(mode(0644, {Folder(0705, kStaff)}), 0400u);
  EXPECT_EQ(mode(0644, {Folder(0705, kLab)}), 0404u);
  EXPECT_EQ(mode(0644, {InodeAccess::Closed()}), 0400u);
}

TEST(SourceAccess, AFoldersListCountsToo) {
  const Bytes one_user = List({{kOwner, 7}, {kUser, 5, kBob}, {kOwningGroup, 0}, {kMask, 5}, {kOthers, 0}});
  EXPECT_EQ(ModeOf(Inode(0644), {}, {Folder(0750, kLab, one_user)}), 0400u);
  const Bytes not_bob = List({{kOwner, 7}, {kUser, 0, kBob}, {kOwningGroup, 5}, {kMask, 5}, {kOthers, 5}});
  EXPECT_EQ(ModeOf(Inode(0644), {}, {Folder(0755, kLab, not_bob)}), 0400u);
  // A group that is let in by name is let in.
  const Bytes the_lab = List({{kOwner, 7}, {kOwningGroup, 0}, {kGroup, 5, kLab}, {kMask, 5}, {kOthers, 0}});
  EXPECT_EQ(ModeOf(Inode(0644), {}, {Folder(0750, kStaff, the_lab)}), 0440u);
  const Bytes masked = List({{kOwner, 7}, {kOwningGroup, 0}, {kGroup, 5, kLab}, {kMask, 4}, {kOthers, 0}});
  EXPECT_EQ(ModeOf(Inode(0644), {}, {Folder(0740, kStaff, masked)}), 0400u);
}

// `unshare -Ur` of Ann: she is root there, her group too, all others are nobody.
class SourceAccessInNamespace : public ::testing::Test {
 protected:
  static constexpr gid_t kNobody = 65534;
  static constexpr uint32_t kNone = 0xffffffff;

  uint32_t ModeOf(mode_t mode, gid_t group, const Bytes& list = {},
                  const std::vector<InodeAccess>& folders = {}) const {
    return EffectiveMode(Of(mode, group), InodeAccess(Of(mode, group), list, ids_), folders);
  }
  InodeAccess Folder(mode_t mode, gid_t group, const Bytes& list = {}) const { return {Of(mode, group), list, ids_}; }

 private:
  static struct stat Of(mode_t mode, gid_t group) {
    struct stat st = Inode(mode, group);
    st.st_uid = 0;
    return st;
  }

  const UserNamespace ids_{"         0       1001          1\n", "         0       2001          1\n", "65534\n",
                           "65534\n"};
};

TEST_F(SourceAccessInNamespace, GroupsWithoutAnIdAreNotTheSame) {
  EXPECT_EQ(ModeOf(0644, kNobody, {}, {Folder(0750, kNobody)}), 0400u);
  EXPECT_EQ(ModeOf(0644, kNobody, {}, {Folder(0755, kNobody)}), 0444u);
  EXPECT_EQ(ModeOf(0644, 0, {}, {Folder(0705, kNobody)}), 0400u);
  EXPECT_EQ(ModeOf(0644, kNobody, {}, {Folder(0705, kNobody)}), 0400u);
  EXPECT_EQ(ModeOf(0640, kNobody), 0400u) << "nor is the one to be stored";
  EXPECT_EQ(ModeOf(0604, kNobody), 0400u);
  // Those that have one there can be told apart.
  EXPECT_EQ(ModeOf(0640, 0, {}, {Folder(0750, 0), Folder(0755, kNobody)}), 0440u);
}

TEST_F(SourceAccessInNamespace, WhoIsNamedWithoutAnIdMayBeAnybody) {
  for (const uint32_t unknown : {kNone, uint32_t{kNobody}}) {
    const Bytes user = List({{kOwner, 6}, {kUser, 0, unknown}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 4}});
    EXPECT_EQ(ModeOf(0644, 0, user), 0400u);
    const Bytes kept_out = List({{kOwner, 6}, {kOwningGroup, 4}, {kGroup, 0, unknown}, {kMask, 4}, {kOthers, 4}});
    EXPECT_EQ(ModeOf(0644, kNobody, kept_out), 0400u);
    EXPECT_EQ(ModeOf(0644, 0, kept_out), 0440u) << "its own group has an id, so it is another";
    const Bytes let_in = List({{kOwner, 7}, {kOwningGroup, 0}, {kGroup, 5, unknown}, {kMask, 5}, {kOthers, 0}});
    EXPECT_EQ(ModeOf(0644, kNobody, {}, {Folder(0750, 0, let_in)}), 0400u);
  }
}

TEST_F(SourceAccessInNamespace, ItsRootIsAnOrdinaryUser) {
  const Bytes not_ann = List({{kOwner, 6}, {kUser, 0, 0}, {kOwningGroup, 4}, {kMask, 4}, {kOthers, 4}});
  struct stat of_somebody = Inode(0644, 0);
  of_somebody.st_uid = kNobody;
  const UserNamespace ids("0 1001 1", "0 2001 1", "65534", "65534");
  EXPECT_EQ(EffectiveMode(of_somebody, InodeAccess(of_somebody, not_ann, ids), {}), 0400u);
  EXPECT_EQ(EffectiveMode(of_somebody, InodeAccess(of_somebody, not_ann, {}), {}), 0444u);
}

TEST(SourceAccess, NobodyIsAUserLikeAnyWhereAllIdsAreMapped) {
  const UserNamespace whole("0 0 4294967295", "0 0 4294967295", "65534", "65534");
  const struct stat file = Inode(0640, 65534);
  EXPECT_EQ(EffectiveMode(file, InodeAccess(file, {}, whole), {}), 0440u);
}

}  // namespace
}  // namespace modelstore
