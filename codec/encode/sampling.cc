#include <algorithm>

#include "codec/encode/exact_encoder.h"

namespace modelstore {
namespace {

uint64_t Stride(uint64_t elems) {
  return std::max(kSampleStride, elems / kMaxSampleWindows + (elems % kMaxSampleWindows != 0));
}

}  // namespace

// A tensor of at most one stride is its own sample (one window).
uint64_t SampleWindowCount(uint64_t elems) {
  if (elems == 0) return 0;
  return elems <= kSampleStride ? 1 : (elems - 1) / Stride(elems) + 1;
}

uint64_t SampleWindowBegin(uint64_t elems, uint64_t w) { return elems <= kSampleStride ? 0 : w * Stride(elems); }

uint64_t SampleWindowElems(uint64_t elems, uint64_t w) {
  if (elems <= kSampleStride) return elems;
  const uint64_t left = elems - w * Stride(elems);
  return left < kSampleWindow ? left : kSampleWindow;
}

uint64_t SampleElems(uint64_t elems) {
  const uint64_t windows = SampleWindowCount(elems);
  return windows == 0
             ? 0
             : (windows - 1) * (elems <= kSampleStride ? 0 : kSampleWindow) + SampleWindowElems(elems, windows - 1);
}

}  // namespace modelstore
