#include "codec/tensor/encoding.h"

namespace modelstore {
namespace {

constexpr InputRole kDeltaRoles[] = {InputRole::kBase};
constexpr InputRole kCompactRoles[] = {InputRole::kBase, InputRole::kFactors, InputRole::kResidual, InputRole::kScales};
constexpr InputRole kProjectedRoles[] = {InputRole::kWeight, InputRole::kAxes, InputRole::kNorm};

constexpr EncodingFacts kEncodings[] = {
    {Encoding::kRaw, "raw", StorageLevel::kRaw, true, true, {}},
    {Encoding::kZstd, "zstd", StorageLevel::kSelf, true, true, {}},
    {Encoding::kSelf, "self", StorageLevel::kSelf, true, true, {}},
    {Encoding::kDelta, "delta", StorageLevel::kDelta, true, true, kDeltaRoles},
    {Encoding::kCompact, "compact", StorageLevel::kCompact, false, false, kCompactRoles},
    {Encoding::kProjected, "projected", StorageLevel::kProjected, false, true, kProjectedRoles},
};

constexpr bool RowsAreInOrder() {
  for (unsigned i = 0; i < std::size(kEncodings); ++i)
    if (static_cast<unsigned>(kEncodings[i].encoding) != i) return false;
  return true;
}
static_assert(RowsAreInOrder(), "a row's place is its encoding's number");

}  // namespace

std::string_view InputName(InputRole role) {
  switch (role) {
    case InputRole::kBase:
      return "view";
    case InputRole::kFactors:
      return "view of factors";
    case InputRole::kResidual:
      return "view of residual";
    case InputRole::kScales:
      return "view of scales";
    case InputRole::kWeight:
      return "view of the weight";
    case InputRole::kAxes:
      return "view of the axes";
    case InputRole::kNorm:
      return "view of the norm";
  }
  return "view of unknown role";
}

bool IsOwnInput(InputRole role) {
  return role != InputRole::kBase && role != InputRole::kWeight && role != InputRole::kNorm;
}

const EncodingFacts* FindEncoding(uint8_t number) {
  return number < std::size(kEncodings) ? &kEncodings[number] : nullptr;
}

const EncodingFacts& FactsOf(Encoding encoding) { return kEncodings[static_cast<uint8_t>(encoding)]; }

}  // namespace modelstore
