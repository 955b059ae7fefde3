// What the codec's tests share: tensors of known distribution and a whole round trip (layer: tests).
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "codec/decode/block_decoder.h"
#include "codec/encode/exact_encoder.h"
#include "codec/kernels/convert.h"
#include "codec/kernels/cpu_target.h"

namespace modelstore::test {

inline constexpr DType kFloats[] = {DType::kF8E4M3, DType::kF8E5M2, DType::kF16,
                                    DType::kBF16,   DType::kF32,    DType::kF64};

inline void PutPattern(Bytes& out, uint64_t pattern, uint32_t width) {
  const size_t at = out.size();
  out.resize(at + width);
  std::memcpy(out.data() + at, &pattern, width);
}

// Normal values of standard deviation `sigma`, rounded to `dtype`.
inline Bytes NormalTensor(DType dtype, size_t elems, double sigma, uint32_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal(0, sigma);
  Bytes out;
  for (size_t i = 0; i < elems; ++i)
    PutPattern(out, NarrowFromF64(dtype, std::bit_cast<uint64_t>(normal(rng))), DTypeBytes(dtype));
  return out;
}

// `base` plus normal noise.
inline Bytes Perturbed(DType dtype, ByteSpan base, double sigma, uint32_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal(0, sigma);
  const uint32_t width = DTypeBytes(dtype);
  Bytes out;
  for (size_t i = 0; i < base.size(); i += width) {
    uint64_t pattern = 0;
    std::memcpy(&pattern, base.data() + i, width);
    const double v = std::bit_cast<double>(WidenToF64(dtype, pattern)) + normal(rng);
    PutPattern(out, NarrowFromF64(dtype, std::bit_cast<uint64_t>(v)), width);
  }
  return out;
}

inline Bytes RandomBytes(size_t n, uint32_t seed) {
  std::mt19937_64 rng(seed);
  Bytes out(n);
  for (std::byte& b : out) b = static_cast<std::byte>(rng());
  return out;
}

inline Bytes SampleOf(ByteSpan bytes, uint64_t elems, uint32_t width) {
  Bytes out;
  for (uint64_t w = 0; w < SampleWindowCount(elems); ++w) {
    const ByteSpan part = bytes.subspan(SampleWindowBegin(elems, w) * width, SampleWindowElems(elems, w) * width);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

inline ByteSpan BlockPart(ByteSpan all, const Frame& f, uint32_t i, uint32_t width) {
  return all.empty() ? ByteSpan() : all.subspan(f.BlockBegin(i) * width, size_t{f.BlockElems(i)} * width);
}

struct CodedTensor {
  Frame frame;
  std::vector<Bytes> blocks;
  Bytes prediction;  // in the coded dtype
  uint64_t bytes() const {
    uint64_t n = SerializeFrame(frame).size();
    for (const Bytes& b : blocks) n += b.size();
    return n;
  }
};

// Plans, gathers, encodes; the frame goes through its serialised form.
inline CodedTensor EncodeTensor(DType dtype, ByteSpan source, DType base_dtype = DType::kOpaque, ByteSpan base = {},
                                uint32_t builders = 2) {
  const uint32_t width = DTypeBytes(dtype);
  const uint64_t elems = source.size() / width;
  EncodePlan plan = PlanTensor(dtype, elems, SampleOf(source, elems, width), base_dtype,
                               base.empty() ? Bytes{} : SampleOf(base, elems, DTypeBytes(base_dtype)));
  CodedTensor coded;
  for (;;) {
    const uint32_t coded_width = DTypeBytes(plan.coded_dtype);
    coded.prediction.clear();
    if (plan.encoding == Encoding::kDelta) {
      coded.prediction.resize(elems * coded_width);
      ConvertElements(base_dtype, plan.coded_dtype, base, coded.prediction);
    }
    std::vector<FrameBuilder> parts;
    for (uint32_t b = 0; b < builders; ++b) parts.emplace_back(plan);
    const uint32_t count = parts[0].frame().BlockCount();
    for (uint32_t i = 0; i < count; ++i) {
      parts[i % builders].AddBlock(i, BlockPart(source, parts[0].frame(), i, width),
                                   BlockPart(coded.prediction, parts[0].frame(), i, coded_width));
    }
    for (uint32_t b = 1; b < builders; ++b) parts[0].Merge(parts[b]);
    if (!parts[0].plan_holds()) {
      plan = WithoutNarrowing(plan);
      continue;
    }
    Result<BlockEncoder> encoder = std::move(parts[0]).Finish();
    EXPECT_TRUE(encoder.ok()) << encoder.status().ToString();
    Result<Frame> frame = ParseFrame(SerializeFrame(encoder->frame()));
    EXPECT_TRUE(frame.ok()) << frame.status().ToString();
    coded.frame = *frame;
    coded.blocks.resize(count);
    for (uint32_t i = 0; i < count; ++i) {
      const Status s = encoder->Encode(i, BlockPart(source, coded.frame, i, width),
                                       BlockPart(coded.prediction, coded.frame, i, coded_width), &coded.blocks[i]);
      EXPECT_TRUE(s.ok()) << s.ToString();
      EXPECT_LE(coded.blocks[i].size(), BlockBytes(coded.frame, i));
    }
    return coded;
  }
}

inline Result<Bytes> DecodeTensor(const CodedTensor& coded) {
  Bytes out;
  for (uint32_t i = 0; i < coded.blocks.size(); ++i) {
    Bytes block(BlockBytes(coded.frame, i));
    RETURN_IF_ERROR(DecodeBlock(coded.frame, i, coded.blocks[i],
                                BlockPart(coded.prediction, coded.frame, i, DTypeBytes(coded.frame.coded_dtype)),
                                block));
    out.insert(out.end(), block.begin(), block.end());
  }
  return out;
}

// Every CPU target in turn; the one in force before is restored.
template <typename Fn>
void OnEveryTarget(Fn fn) {
  const CpuTarget before = CurrentCpuTarget();
  for (const CpuTarget target : AvailableCpuTargets()) {
    ForceCpuTarget(target);
    SCOPED_TRACE(std::string(CpuTargetName(target)));
    fn();
  }
  ForceCpuTarget(before);
}

inline void ExpectRoundTrip(const CodedTensor& coded, ByteSpan source) {
  OnEveryTarget([&] {
    const Result<Bytes> back = DecodeTensor(coded);
    ASSERT_TRUE(back.ok()) << back.status().ToString();
    ASSERT_EQ(back->size(), source.size());
    EXPECT_EQ(std::memcmp(back->data(), source.data(), source.size()), 0);
  });
}

}  // namespace modelstore::test
