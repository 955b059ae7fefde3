#include "codec/support/hash.h"

#include <gtest/gtest.h>

#include <string>

namespace modelstore {
namespace {

std::string Sha(std::string_view text) {
  Sha256 h;
  h.Update(AsBytes(text));
  const Sha256Digest digest = h.Finish();
  return ToHex(digest);
}

TEST(Hash, Sha256OfPublishedVectors) {
  EXPECT_EQ(Sha(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// The values are on disk (block checksums and content hashes): they may never change.
TEST(Hash, XxhashIsPinned) {
  EXPECT_EQ(Checksum64({}), 0x2d06800538d394c2u);
  EXPECT_EQ(HashBytes({}), (Hash128{0x6001c324468d497f, 0x99aa06d3014798d8}));
}

TEST(Hash, PiecesEqualTheWhole) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i);
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{240}, size_t{4096}, text.size()}) {
    Hasher128 h;
    h.Update(AsBytes(std::string_view(text).substr(0, cut)));
    h.Update(AsBytes(std::string_view(text).substr(cut)));
    EXPECT_EQ(h.Finish(), HashBytes(AsBytes(text))) << cut;
    Sha256 s;
    s.Update(AsBytes(std::string_view(text).substr(0, cut)));
    s.Update(AsBytes(std::string_view(text).substr(cut)));
    const Sha256Digest digest = s.Finish();
    EXPECT_EQ(ToHex(digest), Sha(text)) << cut;
  }
}

TEST(Hash, OneBitChangesEveryHash) {
  std::string a(1000, 'x');
  std::string b = a;
  b[500] ^= 1;
  EXPECT_NE(Checksum64(AsBytes(a)), Checksum64(AsBytes(b)));
  EXPECT_NE(HashBytes(AsBytes(a)), HashBytes(AsBytes(b)));
}

TEST(Hash, AccumulatorsMove) {
  Hasher128 h;
  h.Update(AsBytes("ab"));
  Hasher128 moved = std::move(h);
  moved.Update(AsBytes("c"));
  EXPECT_EQ(moved.Finish(), HashBytes(AsBytes("abc")));
}

TEST(Hash, Hex) {
  const Bytes b = {std::byte{0x00}, std::byte{0x0f}, std::byte{0xa0}, std::byte{0xff}};
  EXPECT_EQ(ToHex(b), "000fa0ff");
  EXPECT_EQ(ToHex({}), "");
}

}  // namespace
}  // namespace modelstore
