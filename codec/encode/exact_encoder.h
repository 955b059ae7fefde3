// Exact encoding of one tensor: choose from a sample, gather statistics over all elements, write blocks
// (layer: codec/encode). No I/O and no threads: the caller feeds blocks, from several threads with a FrameBuilder each.
//
// clang-format off
//   EncodePlan plan = PlanTensor(dtype, elems, sample, base_dtype, base_sample);  // one for each base: keep the smallest
//   FrameBuilder builder(plan);                                                   // several threads: one each, Merge
//   for (each block) builder.AddBlock(index, source, prediction);
//   Result<BlockEncoder> encoder = builder.Finish();                              // makes the tables; may choose raw
//   for (each block) encoder->Encode(index, source, prediction, &coded);          // thread-safe
// clang-format on
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "codec/decode/frame.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "codec/tensor/dtype.h"

namespace modelstore {

// Positions that a sample consists of: windows of kSampleWindow consecutive elements, one every kSampleStride (the
// whole tensor when it has at most kSampleStride elements). docs: regret of 4e-5 on the real pair. Larger tensors than
// that pair's have kMaxSampleWindows, farther apart: a sample's memory is bounded.
inline constexpr uint64_t kSampleWindow = 256;
inline constexpr uint64_t kSampleStride = 16 * 1024;
inline constexpr uint64_t kMaxSampleWindows = 2048;
// Elements of the sample of a tensor of `elems` elements and the first element of its window `w`.
uint64_t SampleElems(uint64_t elems);
uint64_t SampleWindowCount(uint64_t elems);
uint64_t SampleWindowBegin(uint64_t elems, uint64_t w);
uint64_t SampleWindowElems(uint64_t elems, uint64_t w);

struct EncodePlan {
  Encoding encoding = Encoding::kRaw;
  DType dtype = DType::kOpaque;
  DType coded_dtype = DType::kOpaque;
  uint64_t elems = 0;
  bool low_bit = false;  // kSelf: the lowest bit is part of the symbol
  // kSelf: a chunk's class is the number of thresholds that its mean magnitude exceeds (ClassOfChunk).
  std::array<uint32_t, kSelfClasses - 1> class_thresholds{};
  uint64_t estimated_bytes = 0;  // of all blocks and the frame
};

// The cheapest way to code a tensor, estimated from samples. `sample` holds SampleElems(elems) elements of `dtype`;
// `base_sample` the elements of the base view at the same positions in `base_dtype`, or is empty (no base: raw, zstd or
// self). Integers, bool and opaque types are zstd (the encoder stores raw what does not shrink).
EncodePlan PlanTensor(DType dtype, uint64_t elems, ByteSpan sample, DType base_dtype, ByteSpan base_sample);

// The plan of a tensor of tokens (kU16, codec/kernels/level_tokens.h): self-coded with symbols of single ranks.
// `sample` as above.
EncodePlan TokenPlan(uint64_t elems, ByteSpan sample);

class BlockEncoder {
 public:
  BlockEncoder(BlockEncoder&&) noexcept;
  BlockEncoder& operator=(BlockEncoder&&) noexcept;
  ~BlockEncoder();

  const Frame& frame() const;
  // Codes block `index` into *out (replaced). `source` in frame().dtype, `prediction` in frame().coded_dtype (delta
  // only). Never more bytes than the source. Thread-safe.
  // Errors: Internal when an element cannot be coded with the gathered tables (the source changed since).
  Status Encode(uint32_t index, ByteSpan source, ByteSpan prediction, Bytes* out) const;

 private:
  friend class FrameBuilder;
  struct State;
  explicit BlockEncoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class FrameBuilder {
 public:
  explicit FrameBuilder(const EncodePlan& plan);
  FrameBuilder(FrameBuilder&&) noexcept;
  FrameBuilder& operator=(FrameBuilder&&) noexcept;
  ~FrameBuilder();

  // Block geometry of the coming frame (tables still empty).
  const Frame& frame() const;
  // False for raw and zstd plans: AddBlock may be skipped.
  bool needs_statistics() const;
  void AddBlock(uint32_t index, ByteSpan source, ByteSpan prediction);
  // Adds the other builder's statistics (same plan).
  void Merge(const FrameBuilder& other);
  // False when an element broke the plan's assumption (a kF32 element with low bits though coded_dtype is kBF16): plan
  // again with WithoutNarrowing(plan).
  bool plan_holds() const;
  // Tables from the statistics; the frame becomes raw when coding would not pay.
  Result<BlockEncoder> Finish() &&;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same plan in the tensor's own dtype.
EncodePlan WithoutNarrowing(EncodePlan plan);

}  // namespace modelstore
