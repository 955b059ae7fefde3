// Who may read a stored file and see a model.
#include "catalog/schema/access.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

constexpr uid_t kAnn = 1001, kNobody = 65534;
constexpr gid_t kLab = 2001, kNoGroup = 65534;

ModelRecord Model(uid_t owner, gid_t group, uint32_t mode) {
  ModelRecord model;
  model.owner_uid = owner;
  ModelFile& file = model.files.emplace_back();
  file.gid = group;
  file.mode = mode;
  return model;
}

bool MayRead(const Identity& who, const ModelRecord& model) {
  EXPECT_EQ(MaySeeModel(who, model), MayReadFile(who, model, model.files[0]) || who.Is(model.owner_uid));
  return MayReadFile(who, model, model.files[0]);
}

TEST(Access, OwnerThenGroupThenOthers) {
  const UserNamespace whole;
  const Identity ann{.uid = kAnn, .gid = kAnn, .groups = {5, kLab}, .ids = whole};
  EXPECT_TRUE(MayRead(ann, Model(kAnn, 7, 0400)));
  EXPECT_FALSE(MayRead(ann, Model(kAnn, kLab, 0044)));
  EXPECT_TRUE(MayRead(ann, Model(1, kLab, 0440)));
  EXPECT_TRUE(MayRead(ann, Model(1, kAnn, 0440)));
  EXPECT_FALSE(MayRead(ann, Model(1, kLab, 0404)));
  EXPECT_TRUE(MayRead(ann, Model(1, 7, 0404)));
  EXPECT_FALSE(MayRead(ann, Model(1, 7, 0440)));
}

TEST(Access, WhoHasNoIdIsNeitherOwnerNorMember) {
  const UserNamespace rootless("0 1000 1\n1 100000 65536\n", "0 1000 1\n1 100000 65536\n", "65534\n", "65534\n");
  const Identity stranger{.uid = kNobody, .gid = kNoGroup, .groups = {kNoGroup}, .ids = rootless};
  EXPECT_FALSE(stranger.Is(kNobody));
  EXPECT_FALSE(stranger.IsIn(kNoGroup));
  EXPECT_FALSE(MayRead(stranger, Model(kNobody, 0, 0400)));
  EXPECT_FALSE(MayRead(stranger, Model(0, kNoGroup, 0440)));
  EXPECT_TRUE(MayRead(stranger, Model(kNobody, kNoGroup, 0444)));
  const Identity member{.uid = 5, .gid = 6, .groups = {kNoGroup, kLab}, .ids = rootless};
  EXPECT_TRUE(MayRead(member, Model(0, kLab, 0440)));
  EXPECT_FALSE(MayRead(member, Model(0, kNoGroup, 0440)));
}

TEST(Access, NobodyIsAUserLikeAnyWhereAllIdsAreMapped) {
  const UserNamespace whole("0 0 4294967295\n", "0 0 4294967295\n", "65534\n", "65534\n");
  const Identity nobody{.uid = kNobody, .gid = kNoGroup, .groups = {}, .ids = whole};
  EXPECT_TRUE(MayRead(nobody, Model(kNobody, 0, 0400)));
  EXPECT_TRUE(MayRead(nobody, Model(0, kNoGroup, 0440)));
}

}  // namespace
}  // namespace modelstore
