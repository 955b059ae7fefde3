// Content hashes (layer: codec/support). Pure functions and accumulators; no shared state.
//
// XXH3-128 finds candidates for identical content and guards tensors against decoding errors; it is not collision
// resistant, so a hit is only a candidate until bytes were compared. SHA-256 identifies whole files, where a
// collision cannot be made on purpose.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>

#include "codec/support/bytes.h"

namespace modelstore {

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  auto operator<=>(const Hash128&) const = default;
};

using Sha256Digest = std::array<std::byte, 32>;

// XXH3-64 of `data`: the checksum of a stored block.
uint64_t Checksum64(ByteSpan data);
Hash128 HashBytes(ByteSpan data);

// Incremental XXH3-128.
class Hasher128 {
 public:
  Hasher128();
  ~Hasher128();
  Hasher128(Hasher128&&) noexcept;
  Hasher128& operator=(Hasher128&&) noexcept;
  void Update(ByteSpan data);
  Hash128 Finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Incremental SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(ByteSpan data);
  Sha256Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Lower-case hexadecimal of any bytes.
std::string ToHex(ByteSpan data);

}  // namespace modelstore
