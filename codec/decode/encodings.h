// What decoding must know of each encoding: a row each (layer: codec/decode). The facts that others need besides are
// its row in codec/tensor/encoding.h. An encoding is one file here, which defines its row, and its line in
// encodings.cc.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/encoding.h"

namespace modelstore {

// Elements of other tensors that a tensor is made from.
struct InputNeed {
  InputRole role = InputRole::kBase;
  uint64_t elems = 0;
  DType dtype = DType::kOpaque;
  bool is_converted = false;  // elements of other dtypes will do, converted to `dtype`; else they have it
};

// Elements of a tensor's inputs, for whoever rebuilds a block.
class InputReader {
 public:
  virtual ~InputReader() = default;
  // Elements [begin, begin + n) of that input in `dtype`, n being as many as fit `out`. Errors: Corruption, Io, …
  virtual Status Read(InputRole role, DType dtype, uint64_t begin, MutableByteSpan out) = 0;
  // The same elements, where they are: valid until the next call of Borrow, of at least one element.
  virtual Result<ByteSpan> Borrow(InputRole role, DType dtype, uint64_t begin, uint64_t elems) = 0;
};

// Memory in bytes. Of a tensor: its largest block as it is held in memory, decoded, as it is stored at most, and in its
// coded dtype.
struct BlockNeed {
  uint64_t block = 0, stored = 0, prediction = 0;
};
// Of a tensor that inputs are views of: its largest block, and what decoding one takes.
struct SeenNeed {
  uint64_t block = 0, peak = 0;
};

struct EncodingRow {
  Encoding encoding;
  // What the frame says behind block_elems. `in` ends where the frame does. Errors: Corruption, Unsupported.
  Status (*parse)(ByteReader& in, Frame& frame);
  void (*serialize)(const Frame& frame, ByteWriter& out);
  // A block that is shorter than its elements; as DecodeBlock, which has checked the sizes. Null: computed.
  Status (*decode)(const Frame& frame, uint32_t index, ByteSpan coded, ByteSpan prediction, MutableByteSpan out);
  // A block of a computed tensor. Null: it has blocks.
  Status (*rebuild)(const Frame& frame, uint32_t index, InputReader& inputs, MutableByteSpan out);
  // All that the tensor is made from; those of no elements too.
  std::vector<InputNeed> (*inputs)(const Frame& frame);
  // The most that making a block takes, with all that is held while the blocks that it needs are made.
  uint64_t (*peak_bytes)(const Frame& frame, const BlockNeed& own, std::span<const SeenNeed> seen);
};

const EncodingRow& RowOf(Encoding encoding);

}  // namespace modelstore
