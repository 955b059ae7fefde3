#include "codec/support/bytes.h"

namespace modelstore {

ByteSpan ByteReader::Take(size_t n) {
  if (!ok_ || n > in_.size() - pos_) {
    ok_ = false;
    return {};
  }
  const ByteSpan b = in_.subspan(pos_, n);
  pos_ += n;
  return b;
}

uint64_t ByteReader::Varint() {
  uint64_t v = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    const uint8_t b = U8();
    if (!ok_) return 0;
    const uint64_t group = b & 0x7f;
    if (shift == 63 && group > 1) break;
    v |= group << shift;
    if ((b & 0x80) == 0) {
      if (b == 0 && shift > 0) break;  // not canonical
      return v;
    }
  }
  ok_ = false;
  return 0;
}

void ByteWriter::Varint(uint64_t v) {
  while (v >= 0x80) {
    U8(static_cast<uint8_t>(v | 0x80));
    v >>= 7;
  }
  U8(static_cast<uint8_t>(v));
}

void BitWriter::Put(uint32_t value, unsigned bits) {
  acc_ |= static_cast<uint64_t>(value) << fill_;
  fill_ += bits;
  while (fill_ >= 8) {
    out_.push_back(static_cast<std::byte>(acc_));
    acc_ >>= 8;
    fill_ -= 8;
  }
}

Bytes BitWriter::Release() {
  if (fill_ > 0) out_.push_back(static_cast<std::byte>(acc_));
  acc_ = 0;
  fill_ = 0;
  return std::move(out_);
}

uint32_t BitReader::Get(unsigned bits) {
  if (!ok_ || bits > in_.size() * 8 - bit_) {
    ok_ = false;
    return 0;
  }
  uint64_t v = 0;
  for (unsigned got = 0; got < bits;) {
    const unsigned in_byte = static_cast<unsigned>(bit_ & 7);
    const unsigned take = std::min(8 - in_byte, bits - got);
    const uint64_t byte = std::to_integer<uint64_t>(in_[bit_ >> 3]);
    v |= ((byte >> in_byte) & ((1u << take) - 1)) << got;
    got += take;
    bit_ += take;
  }
  return static_cast<uint32_t>(v);
}

}  // namespace modelstore
