// Which ids can be told apart, by the kernel's own texts.
#include "codec/support/user_namespace.h"

#include <gtest/gtest.h>

namespace modelstore {
namespace {

constexpr const char* kWhole = "         0          0 4294967295\n";

TEST(UserNamespace, AllIdsMeanSomethingWhereAllAreMapped) {
  for (const UserNamespace& ids : {UserNamespace(), UserNamespace(kWhole, kWhole, "65534\n", "65534\n")}) {
    EXPECT_TRUE(ids.is_whole());
    EXPECT_TRUE(ids.SameUser(65534, 65534));
    EXPECT_TRUE(ids.SameGroup(65534, 65534));
    EXPECT_FALSE(ids.SameGroup(1, 2));
    EXPECT_FALSE(ids.SameUser(UINT32_MAX, UINT32_MAX)) << "no id at all";
  }
}

TEST(UserNamespace, TheOverflowIdIsNobodysElsewhere) {
  for (const char* map : {"0 1000 1\n", "0 1000 1\n1 100000 65536\n", "", "0 0 4294967294\n", "0 1 4294967295\n"}) {
    const UserNamespace ids(map, kWhole, "65534\n", "65534\n");
    EXPECT_FALSE(ids.is_whole()) << map;
    EXPECT_FALSE(ids.SameUser(65534, 65534)) << map;
    EXPECT_TRUE(ids.SameUser(0, 0)) << map;
    EXPECT_TRUE(ids.SameGroup(65534, 65534)) << map;
  }
  const UserNamespace other(kWhole, "0 1000 1\n", "65534\n", "99\n");
  EXPECT_FALSE(other.SameGroup(99, 99));
  EXPECT_TRUE(other.SameGroup(65534, 65534));
  EXPECT_FALSE(UserNamespace(kWhole, "0 1000 1\n", "", "").SameGroup(65534, 65534)) << "what is usual";
}

}  // namespace
}  // namespace modelstore
