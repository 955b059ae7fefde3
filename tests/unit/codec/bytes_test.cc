#include "codec/support/bytes.h"

#include <gtest/gtest.h>

#include <limits>

namespace modelstore {
namespace {

constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

Bytes Raw(std::initializer_list<int> values) {
  Bytes out;
  for (const int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

TEST(Bytes, RoundTrip) {
  ByteWriter w;
  w.U8(0xab);
  w.U16(0x1234);
  w.U32(0xdeadbeef);
  w.U64(kMax64 - 1);
  w.String("hello");
  w.LengthPrefixed({});
  const Bytes b = w.Release();
  ByteReader r(b);
  EXPECT_EQ(r.U8(), 0xab);
  EXPECT_EQ(r.U16(), 0x1234);
  EXPECT_EQ(r.U32(), 0xdeadbeefu);
  EXPECT_EQ(r.U64(), kMax64 - 1);
  EXPECT_FALSE(r.AtEnd());
  EXPECT_EQ(r.String(), "hello");
  EXPECT_TRUE(r.LengthPrefixed().empty());
  EXPECT_TRUE(r.AtEnd());
  EXPECT_EQ(r.position(), b.size());
}

TEST(Bytes, LittleEndian) {
  ByteWriter w;
  w.U32(0x01020304);
  EXPECT_EQ(w.Release(), Raw({4, 3, 2, 1}));
}

TEST(Bytes, ShortReadFailsForGood) {
  const Bytes b = Raw({1, 2, 3});
  ByteReader r(b);
  EXPECT_EQ(r.U32(), 0u);
  EXPECT_FALSE(r.ok());
  EXPECT_EQ(r.U8(), 0u);
  EXPECT_TRUE(r.Take(0).empty());
  EXPECT_EQ(r.remaining(), 0u);
  EXPECT_FALSE(r.AtEnd());
}

TEST(Bytes, HugeLengthsDoNotWrap) {
  const Bytes b = Raw({1, 2, 3});
  ByteReader r(b);
  r.U8();
  EXPECT_TRUE(r.Take(std::numeric_limits<size_t>::max()).empty());
  EXPECT_FALSE(r.ok());
  ByteWriter w;
  w.Varint(kMax64);
  const Bytes lying = w.Release();
  ByteReader lr(lying);
  EXPECT_EQ(lr.String(), "");
  EXPECT_FALSE(lr.ok());
}

TEST(Bytes, VarintRoundTrip) {
  for (const uint64_t v : {uint64_t{0}, uint64_t{1}, uint64_t{127}, uint64_t{128}, uint64_t{16383}, uint64_t{16384},
                           uint64_t{1} << 32, uint64_t{1} << 63, kMax64}) {
    ByteWriter w;
    w.Varint(v);
    const Bytes b = w.Release();
    ByteReader r(b);
    EXPECT_EQ(r.Varint(), v);
    EXPECT_TRUE(r.AtEnd()) << v;
  }
}

TEST(Bytes, VarintRefusesWhatIsNotCanonical) {
  const Bytes bad[] = {
      Raw({0x80}),                                                              // cut short
      Raw({0x80, 0x00}),                                                        // a superfluous zero group
      Raw({0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}),        // 65 bits
      Raw({0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0x00}),  // 11 bytes
      Raw({}),
  };
  for (const Bytes& b : bad) {
    ByteReader r(b);
    EXPECT_EQ(r.Varint(), 0u);
    EXPECT_FALSE(r.ok());
  }
}

TEST(Bytes, BitsRoundTrip) {
  BitWriter w;
  uint32_t sum_bits = 0;
  for (unsigned bits = 0; bits <= 32; ++bits) {
    w.Put(static_cast<uint32_t>((uint64_t{1} << bits) - 1) & 0xa5a5a5a5u, bits);
    sum_bits += bits;
  }
  const Bytes b = w.Release();
  EXPECT_EQ(b.size(), (sum_bits + 7) / 8);
  BitReader r(b);
  for (unsigned bits = 0; bits <= 32; ++bits)
    EXPECT_EQ(r.Get(bits), static_cast<uint32_t>((uint64_t{1} << bits) - 1) & 0xa5a5a5a5u) << bits;
  EXPECT_TRUE(r.ok());
}

TEST(Bytes, BitsPastTheEndFail) {
  const Bytes b = Raw({0xff});
  BitReader r(b);
  EXPECT_EQ(r.Get(7), 127u);
  EXPECT_EQ(r.Get(2), 0u);
  EXPECT_FALSE(r.ok());
  EXPECT_EQ(r.Get(1), 0u);
}

}  // namespace
}  // namespace modelstore
