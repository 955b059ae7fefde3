// DeviceProgram: what a device decodes in one go, many blocks of many tensors (layer: codec/device).
//
// Plain data at the beginning of an input buffer, which goes to the device as it is; offsets instead of pointers, so
// that it means the same there. BatchBuilder makes programs and answers for every offset and size in them: kernels
// check nothing but the words of streams. Also what a plug-in is given (device_api.h): a change of any struct needs a
// new kDeviceApiVersion.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/kernels/warp_compact.h"
#include "codec/kernels/warp_rans.h"

namespace modelstore {

// Everything that is 16-byte aligned here is there, too.
inline constexpr uint64_t kDeviceAlignment = 16;

// Where bytes are: sent by the host, going back to it, on the device alone, or there since it was opened.
enum class DeviceSpace : uint64_t { kInput = 0, kOutput = 1, kScratch = 2, kConstants = 3 };
struct DeviceRef {
  static constexpr unsigned kSpaceShift = 62;
  uint64_t bits = ~uint64_t{0};  // nowhere

  static DeviceRef Of(DeviceSpace space, uint64_t offset) {
    return {static_cast<uint64_t>(space) << kSpaceShift | offset};
  }
  MODELSTORE_DEVICE uint64_t offset() const { return bits & ((static_cast<uint64_t>(1) << kSpaceShift) - 1); }
  DeviceRef operator+(uint64_t bytes) const { return {bits + bytes}; }
  bool operator==(const DeviceRef&) const = default;
};

// What the device's memory for a program is; on the host, what stands for it.
struct DeviceSpaces {
  std::byte* space[4] = {};  // by DeviceSpace

  template <typename T>
  MODELSTORE_DEVICE T* At(DeviceRef ref) const {
    if (ref.bits == ~uint64_t{0}) return nullptr;
    // Chosen, not indexed: an array that is indexed would leave a GPU's registers.
    const uint64_t of = ref.bits >> DeviceRef::kSpaceShift;
    std::byte* const from = of < 2 ? (of == 0 ? space[0] : space[1]) : (of == 2 ? space[2] : space[3]);
    return reinterpret_cast<T*>(from + ref.offset());
  }
};

// One kernel's work: kinds of streams first, then those of compact tensors.
enum class DeviceKernel : uint32_t {
  kSelf8,
  kDelta8,
  kSelf16,
  kDelta16,
  kSelf32,
  kDelta32,
  kSelf64,
  kDelta64,
  kSelfWidened,  // BF16 that leaves as F32
  kDeltaWidened,
  kUnpack,
  kRebuildBf16,
  kRebuildF16,
  kRebuildF32,
  kRebuildF64,
  kRebuildE4m3,
  kRebuildE5m2,
};
inline constexpr uint32_t kDeviceKernels = 17;
constexpr bool DecodesStreams(DeviceKernel kernel) { return kernel < DeviceKernel::kUnpack; }

// The symbol tables of a tensor: a few KiB, which a group of warps shares.
struct DeviceTables {
  DeviceRef slots, symbols, high_bases;
  uint32_t contexts = 0, context_symbols = 0;
  uint32_t exponent_low = 0, exponent_shift = 0, exponent_mask = 0;
  uint32_t low_bit = 0;

  uint32_t slot_bytes() const { return contexts << kProbBits; }
  uint32_t symbol_count() const { return contexts * context_symbols; }
};
inline constexpr uint32_t kMaxTableSymbols = kSelfClasses * kSelfSymbols;

struct DeviceStream {
  DeviceRef states, words, prediction, classes, out;
  uint32_t word_count = 0, elems = 0;
  uint32_t status = 0;  // where it says whether it went well
};
// Streams of one tensor that run side by side, a warp each.
inline constexpr uint32_t kGroupStreams = 8;
struct DeviceGroup {
  uint32_t tables = 0, first_stream = 0, stream_count = 0;
};

struct DeviceUnpack {
  DeviceRef tokens, scales, out;
  uint32_t first_level = 0, levels = 0, rank = 0;
  uint32_t status = 0;
};
// One warp's share of an unpacking; the caller cuts larger ones.
inline constexpr uint32_t kUnpackLevels = 1 << 14;

struct DevicePiece {
  DeviceRef prediction, out, right, weights, factor_rows, residual, steps, units;
  uint64_t first_elem = 0;
  uint32_t elems = 0, columns = 0, first_column = 0, group_elems = 0, group_offset = 0, token_offset = 0;
  uint32_t rank = 0, seed = 0;
  uint32_t is_wide = 0, is_nearest = 0, is_aligned = 0;
  uint32_t status = 0;
};
struct DeviceTile {
  uint32_t piece = 0;
  uint32_t begin = 0;  // elements behind the piece's first
};

// Kernels run in the order of launches: one's results are another's predictions.
struct DeviceLaunch {
  DeviceKernel kernel = DeviceKernel::kSelf8;
  uint32_t first = 0, count = 0;  // of groups, unpacks or tiles
};

struct DeviceProgram {
  // Arrays in the input.
  uint64_t tables = 0, streams = 0, groups = 0, unpacks = 0, pieces = 0, tiles = 0, launches = 0;
  uint32_t launch_count = 0;
  uint32_t status_count = 0;  // the output begins with as many bytes: 1 where nothing failed
  uint64_t input_bytes = 0, output_bytes = 0, scratch_bytes = 0;
};

// What every device keeps: the tables of tokens (WarpTokens), pairs first.
inline constexpr uint64_t kDevicePairBytes = kWarpTokenPatterns * sizeof(uint16_t);
inline constexpr uint64_t kDeviceConstantBytes = kDevicePairBytes + kWarpTokenPatterns * sizeof(uint32_t);

}  // namespace modelstore
