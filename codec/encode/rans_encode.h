// Encoding of coder B's streams, the mirror of codec/kernels/rans_decode (layer: codec/encode).
//
// Thread-safe: tables are read only, scratch is the caller's.
#pragma once

#include <cstdint>
#include <vector>

#include "codec/kernels/rans_decode.h"
#include "codec/kernels/rans_tables.h"
#include "codec/support/bytes.h"

namespace modelstore {

struct EncodeSymbol {
  uint64_t base = 0;
  uint64_t reciprocal = 0;  // floor(2^42 / freq) + 1: (y * reciprocal) >> 42 == y / freq for y < freq * 2^22
  uint32_t limit = 0;       // states above it give a word away first
  uint16_t start = 0;
  uint16_t freq = 0;  // 0: cannot be coded
  uint8_t raw_bits = 0;
  uint8_t first_bits = 0;
};

class EncodeTables {
 public:
  EncodeTables() = default;
  // `decode_tables` (of the same model) outlives the object.
  EncodeTables(const RansModel& model, const DecodeTables& decode_tables);
  const DecodeTables& decode_tables() const { return *decode_tables_; }

  const EncodeSymbol& Find(uint32_t context, uint64_t value) const {
    const size_t key = delta_ ? value : value >> cell_shift_;
    if (key < lookup_size_) return symbols_[lookup_[context * lookup_size_ + key]];
    return FindLarge(context, value);
  }

 private:
  const DecodeTables* decode_tables_ = nullptr;
  const EncodeSymbol& FindLarge(uint32_t context, uint64_t value) const;

  bool delta_ = false;
  unsigned cell_shift_ = 0;
  size_t lookup_size_ = 0;
  std::vector<uint16_t> lookup_;
  std::vector<EncodeSymbol> symbols_;
  std::vector<uint32_t> first_symbol_;  // of each context, and the end
};

// Codes one stream: values[i] in context contexts[i]. Appends states and words to *out.
// False when it would take more than max_bytes (nothing is appended) or a value cannot be coded (*uncodable is set).
template <typename U>
bool EncodeStream(const EncodeTables& tables, const U* values, const uint8_t* contexts, size_t n, size_t max_bytes,
                  Bytes* out, bool* uncodable);

}  // namespace modelstore
