// Element types of tensors (layer: codec/tensor). Pure functions.
#pragma once

#include <cstdint>
#include <string_view>

namespace modelstore {

// Numbers are on disk: never renumber. kOpaque is a byte of a type that this build does not know (its elements are
// bytes, its shape is kept as text by the container's own header).
enum class DType : uint8_t {
  kOpaque = 0,
  kBool = 1,
  kU8 = 2,
  kI8 = 3,
  kF8E4M3 = 4,
  kF8E5M2 = 5,
  kU16 = 6,
  kI16 = 7,
  kF16 = 8,
  kBF16 = 9,
  kU32 = 10,
  kI32 = 11,
  kF32 = 12,
  kU64 = 13,
  kI64 = 14,
  kF64 = 15,
};
inline constexpr int kDTypeCount = 16;

// Bytes of one element: 1, 2, 4 or 8.
uint32_t DTypeBytes(DType dtype);
// True for the floating-point types.
bool DTypeIsFloat(DType dtype);
// The safetensors name ("BF16"); "OPAQUE" for kOpaque.
std::string_view DTypeName(DType dtype);
// The inverse; an unknown name is kOpaque.
DType DTypeFromName(std::string_view name);
// True when `number` is a DType of this build (for records read from disk).
bool DTypeIsKnown(uint8_t number);

}  // namespace modelstore
