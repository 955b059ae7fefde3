// Loads, stores and bit patterns of a CPU target's vectors F and U (layer: codec/kernels; private to it, included after
// one of vectors_*.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace modelstore {
namespace {

inline F Load(const float* at) {
  F v;
  std::memcpy(&v, at, sizeof(v));
  return v;
}
inline void Store(F v, float* at) { std::memcpy(at, &v, sizeof(v)); }
inline U BitsOf(F v) {
  U u;
  std::memcpy(&u, &v, sizeof(u));
  return u;
}
inline F FloatOf(U u) {
  F v;
  std::memcpy(&v, &u, sizeof(v));
  return v;
}

}  // namespace
}  // namespace modelstore
