#include "codec/tensor/dtype.h"

#include <array>

namespace modelstore {
namespace {

struct DTypeRow {
  std::string_view name;
  uint32_t bytes;
  bool is_float;
};

// Indexed by DType's number.
constexpr std::array<DTypeRow, kDTypeCount> kRows = {{
    {"OPAQUE", 1, false},
    {"BOOL", 1, false},
    {"U8", 1, false},
    {"I8", 1, false},
    {"F8_E4M3", 1, true},
    {"F8_E5M2", 1, true},
    {"U16", 2, false},
    {"I16", 2, false},
    {"F16", 2, true},
    {"BF16", 2, true},
    {"U32", 4, false},
    {"I32", 4, false},
    {"F32", 4, true},
    {"U64", 8, false},
    {"I64", 8, false},
    {"F64", 8, true},
}};

const DTypeRow& Row(DType dtype) {
  const auto number = static_cast<uint8_t>(dtype);
  return kRows[DTypeIsKnown(number) ? number : 0];
}

}  // namespace

uint32_t DTypeBytes(DType dtype) { return Row(dtype).bytes; }
bool DTypeIsFloat(DType dtype) { return Row(dtype).is_float; }
std::string_view DTypeName(DType dtype) { return Row(dtype).name; }

DType DTypeFromName(std::string_view name) {
  for (uint8_t number = 0; number < kDTypeCount; ++number)
    if (kRows[number].name == name) return static_cast<DType>(number);
  return DType::kOpaque;
}

bool DTypeIsKnown(uint8_t number) { return number < kDTypeCount; }

}  // namespace modelstore
