// The entry of each kernel: one warp's share of a DeviceProgram (layer: codec/device). For a GPU and for the host
// model.
#pragma once

#include <type_traits>

#include "codec/device/device_program.h"

namespace modelstore {

MODELSTORE_DEVICE void SetStatus(const DeviceSpaces& spaces, uint32_t status, bool ok) {
  // Statuses begin as 1; failures of several warps agree.
  if (!ok) spaces.space[static_cast<unsigned>(DeviceSpace::kOutput)][status] = std::byte{0};
}

MODELSTORE_DEVICE WarpTables TablesAt(const DeviceSpaces& spaces, const DeviceTables& t) {
  return {spaces.At<const uint8_t>(t.slots),
          spaces.At<const WarpSymbol>(t.symbols),
          spaces.At<const uint32_t>(t.high_bases),
          t.context_symbols,
          t.exponent_low,
          t.exponent_shift,
          t.exponent_mask,
          t.low_bit != 0};
}

MODELSTORE_DEVICE WarpTokens TokensAt(const DeviceSpaces& spaces) {
  const std::byte* at = spaces.space[static_cast<unsigned>(DeviceSpace::kConstants)];
  return {reinterpret_cast<const uint16_t*>(at), reinterpret_cast<const uint32_t*>(at + kDevicePairBytes)};
}

template <unsigned kBytes>
using Unsigned =
    std::conditional_t<kBytes == 1, uint8_t,
                       std::conditional_t<kBytes == 2, uint16_t, std::conditional_t<kBytes == 4, uint32_t, uint64_t>>>;

// The pattern type and the direction of a kernel of streams.
template <DeviceKernel kKernel>
struct StreamTraits {
  static constexpr uint32_t kIndex = static_cast<uint32_t>(kKernel);
  static constexpr bool kWidened = kKernel >= DeviceKernel::kSelfWidened;
  static constexpr bool kDelta = kIndex % 2 == 1;
  static constexpr unsigned kBytes = kWidened ? 2 : 1u << kIndex / 2;
  using U = Unsigned<kBytes>;
};

template <DeviceKernel kKernel, typename Warp>
MODELSTORE_DEVICE void RunStream(const DeviceSpaces& spaces, const WarpTables& tables, const DeviceStream& s) {
  using Traits = StreamTraits<kKernel>;
  const WarpStream stream = {
      spaces.At<const uint32_t>(s.states), spaces.At<const uint16_t>(s.words),  s.word_count,          s.elems,
      spaces.At<const void>(s.prediction), spaces.At<const uint8_t>(s.classes), spaces.At<void>(s.out)};
  constexpr WarpOutput kOutput = Traits::kWidened ? WarpOutput::kWidened : WarpOutput::kPatterns;
  SetStatus(spaces, s.status, DecodeStream<Warp, typename Traits::U, Traits::kDelta, kOutput>(tables, stream));
}

template <typename Warp>
MODELSTORE_DEVICE void RunUnpack(const DeviceSpaces& spaces, const DeviceUnpack& u) {
  const WarpFactors factors = {spaces.At<const uint16_t>(u.tokens), u.first_level, u.levels,
                               spaces.At<const float>(u.scales),    u.rank,        spaces.At<float>(u.out)};
  SetStatus(spaces, u.status, UnpackFactors<Warp>(TokensAt(spaces), factors));
}

template <DeviceKernel kKernel>
struct RebuildTraits {
  static constexpr DType kDType = kKernel == DeviceKernel::kRebuildBf16   ? DType::kBF16
                                  : kKernel == DeviceKernel::kRebuildF16  ? DType::kF16
                                  : kKernel == DeviceKernel::kRebuildF32  ? DType::kF32
                                  : kKernel == DeviceKernel::kRebuildF64  ? DType::kF64
                                  : kKernel == DeviceKernel::kRebuildE4m3 ? DType::kF8E4M3
                                                                          : DType::kF8E5M2;
  static constexpr unsigned kBytes = FloatLayoutOf(kDType).width_bits / 8;
  using U = Unsigned<kBytes>;
};

// `units`: a copy of the piece's, or these.
template <DeviceKernel kKernel, typename Warp>
MODELSTORE_DEVICE void RunTile(const DeviceSpaces& spaces, const DevicePiece& p, uint32_t tile_begin,
                               const float* units) {
  using Traits = RebuildTraits<kKernel>;
  const WarpPiece piece = {spaces.At<const void>(p.prediction),
                           spaces.At<void>(p.out),
                           spaces.At<const float>(p.right),
                           spaces.At<const float>(p.weights),
                           spaces.At<const uint32_t>(p.factor_rows),
                           spaces.At<const uint16_t>(p.residual),
                           spaces.At<const float>(p.steps),
                           p.first_elem,
                           p.elems,
                           p.columns,
                           p.first_column,
                           p.group_elems,
                           p.group_offset,
                           p.token_offset,
                           p.rank,
                           p.seed,
                           units,
                           p.is_wide != 0,
                           p.is_nearest != 0,
                           p.is_aligned != 0};
  const uint32_t left = p.elems - tile_begin;
  const uint32_t end = tile_begin + (left < kTileElems ? left : kTileElems);
  SetStatus(spaces, p.status,
            RebuildTile<Warp, Traits::kDType, typename Traits::U>(TokensAt(spaces), piece, tile_begin, end));
}

}  // namespace modelstore
