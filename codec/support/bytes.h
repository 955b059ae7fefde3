// ByteReader and ByteWriter: bounds-checked little-endian serialisation (layer: codec/support).
//
// The reader never reads past its span: the first short read makes it fail for good, every later read returns zero or
// an empty span, and the caller checks ok() once at the end (sizes that drive allocations are bounded by the caller
// against remaining() first). Neither owns the input; views returned by the reader live as long as its span.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace modelstore {

static_assert(std::endian::native == std::endian::little, "modelstore's formats are little-endian");

using Bytes = std::vector<std::byte>;
using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

inline ByteSpan AsBytes(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }
inline std::string_view AsChars(ByteSpan b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

class ByteReader {
 public:
  explicit ByteReader(ByteSpan in) : in_(in) {}

  bool ok() const { return ok_; }
  size_t remaining() const { return ok_ ? in_.size() - pos_ : 0; }
  size_t position() const { return pos_; }
  // True when every byte was consumed and nothing failed.
  bool AtEnd() const { return ok_ && pos_ == in_.size(); }
  void Fail() { ok_ = false; }

  uint8_t U8() { return Fixed<uint8_t>(); }
  uint16_t U16() { return Fixed<uint16_t>(); }
  uint32_t U32() { return Fixed<uint32_t>(); }
  uint64_t U64() { return Fixed<uint64_t>(); }
  // LEB128, at most 10 bytes, canonical (no superfluous zero group); else fails.
  uint64_t Varint();
  ByteSpan Take(size_t n);
  // A varint length and that many bytes.
  ByteSpan LengthPrefixed() { return Take(Varint()); }
  std::string String() { return std::string(AsChars(LengthPrefixed())); }

 private:
  template <typename T>
  T Fixed() {
    T v{};
    const ByteSpan b = Take(sizeof(T));
    if (b.size() == sizeof(T)) std::memcpy(&v, b.data(), sizeof(T));
    return v;
  }

  ByteSpan in_;
  size_t pos_ = 0;
  bool ok_ = true;
};

class ByteWriter {
 public:
  void U8(uint8_t v) { Fixed(v); }
  void U16(uint16_t v) { Fixed(v); }
  void U32(uint32_t v) { Fixed(v); }
  void U64(uint64_t v) { Fixed(v); }
  void Varint(uint64_t v);
  void Append(ByteSpan b) { out_.insert(out_.end(), b.begin(), b.end()); }
  void LengthPrefixed(ByteSpan b) {
    Varint(b.size());
    Append(b);
  }
  void String(std::string_view s) { LengthPrefixed(AsBytes(s)); }

  size_t size() const { return out_.size(); }
  ByteSpan view() const { return out_; }
  Bytes Release() { return std::move(out_); }

 private:
  template <typename T>
  void Fixed(T v) {
    const size_t at = out_.size();
    out_.resize(at + sizeof(T));
    std::memcpy(out_.data() + at, &v, sizeof(T));
  }

  Bytes out_;
};

// Bits, least significant first, for packed tables.
class BitWriter {
 public:
  void Put(uint32_t value, unsigned bits);  // bits <= 32
  Bytes Release();                          // pads the last byte with zeros

 private:
  Bytes out_;
  uint64_t acc_ = 0;
  unsigned fill_ = 0;
};

class BitReader {
 public:
  explicit BitReader(ByteSpan in) : in_(in) {}
  uint32_t Get(unsigned bits);  // 0 and failed past the end
  // True when only the zero bits that pad the last byte are left.
  bool AtPadding() {
    const size_t left = in_.size() * 8 - bit_;
    return ok_ && left < 8 && Get(static_cast<unsigned>(left)) == 0;
  }
  bool ok() const { return ok_; }

 private:
  ByteSpan in_;
  size_t bit_ = 0;
  bool ok_ = true;
};

}  // namespace modelstore
