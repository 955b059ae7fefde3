// The CRC-32C that takes the place of RocksDB's must be the same function.
#include "catalog/store/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace modelstore {
namespace {

// Bit by bit, as in RFC 3720.
uint32_t Reference(uint32_t crc, const std::string& data) {
  crc ^= 0xffffffff;
  for (const char c : data) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return crc ^ 0xffffffff;
}

TEST(Crc32c, KnownValues) {
  const std::string zeros(32, '\0');
  EXPECT_EQ(ExtendCrc32c(0, zeros.data(), zeros.size()), 0x8a9136aau);
  EXPECT_EQ(ExtendCrc32c(0, "123456789", 9), 0xe3069283u);
  EXPECT_EQ(ExtendCrc32cByTables(0, "123456789", 9), 0xe3069283u);
}

TEST(Crc32c, BothWaysEqualTheReferenceAtEveryLengthAndAlignment) {
  std::mt19937_64 random(5);
  std::string noise(40000, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  for (const size_t size : {0, 1, 7, 8, 9, 63, 1000, 12287, 12288, 12289, 24575, 24576, 30001, 36864}) {
    for (size_t at = 0; at < 9; ++at) {
      const auto start = static_cast<uint32_t>(random());
      const uint32_t expected = Reference(start, noise.substr(at, size));
      EXPECT_EQ(ExtendCrc32c(start, noise.data() + at, size), expected) << size << " at " << at;
      EXPECT_EQ(ExtendCrc32cByTables(start, noise.data() + at, size), expected) << size << " at " << at;
    }
  }
}

TEST(Crc32c, ExtendsInParts) {
  const std::string text(20000, 'q');
  uint32_t crc = 0;
  for (size_t at = 0; at < text.size(); at += 777)
    crc = ExtendCrc32c(crc, text.data() + at, std::min<size_t>(777, text.size() - at));
  EXPECT_EQ(crc, ExtendCrc32c(0, text.data(), text.size()));
}

}  // namespace
}  // namespace modelstore
