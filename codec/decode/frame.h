// Frame: how one tensor is coded, everything a decoder needs besides the blocks (layer: codec/decode).
//
// A tensor is cut into blocks of block_elems elements (the last may be shorter); each decodes independently. A block
// whose coded bytes are exactly as many as its elements' bytes is stored raw, whatever the frame's encoding.
// docs/format.md, "Frames". Immutable after parsing; safe to share between threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "codec/decode/compact_frame.h"
#include "codec/kernels/rans_decode.h"
#include "codec/kernels/rans_tables.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"
#include "codec/tensor/encoding.h"

namespace modelstore {

inline constexpr uint32_t kBlockBytes = 256 * 1024;  // of a block in the tensor's dtype, as written by this build
inline constexpr uint32_t kMaxBlockElems = 1u << 20;
inline constexpr uint64_t kMaxAxesElems = uint64_t{1} << 26;  // of a projection's axes

// The dtypes that a projection may have.
constexpr bool IsProjectable(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// W diag(g) R: elems / columns rows; W: rows x depth, g: depth or 1, R: depth x columns.
struct Projection {
  uint64_t columns = 0, depth = 0;
  bool has_norm = false;
};

struct Frame {
  Encoding encoding = Encoding::kRaw;
  DType dtype = DType::kOpaque;
  // The dtype that is entropy-coded: `dtype`, or kBF16 for a kF32 tensor whose low 16 bits are all zero. A delta's
  // prediction is given in this dtype.
  DType coded_dtype = DType::kOpaque;
  uint64_t elems = 0;
  uint32_t block_elems = 0;
  RansModel model;                              // kSelf and kDelta
  std::shared_ptr<const DecodeTables> tables;   // made from `model` by ParseFrame or PrepareTables
  std::shared_ptr<const CompactFrame> compact;  // kCompact; coded_dtype = dtype
  std::optional<Projection> projection;         // kProjected; coded_dtype = dtype

  uint32_t BlockCount() const;
  // Elements of block `index` (< BlockCount()).
  uint32_t BlockElems(uint32_t index) const;
  uint64_t BlockBegin(uint32_t index) const { return uint64_t{index} * block_elems; }
};

Bytes SerializeFrame(const Frame& frame);
// Errors: Corruption, Unsupported.
Result<Frame> ParseFrame(ByteSpan bytes);
// Sets frame.tables from frame.model (kSelf and kDelta; nothing otherwise).
void PrepareTables(Frame& frame);
// Elements of a block's first stream: all of them in a short block, else about half (docs/format.md, "Blocks: coder
// B").
uint32_t FirstStreamElems(uint32_t block_elems);
// Raw (or zstd) frame for `elems` elements.
Frame PlainFrame(Encoding encoding, DType dtype, uint64_t elems);

}  // namespace modelstore
