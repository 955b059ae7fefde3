// The warp that kernels for GPUs are written for: 32 lanes in lock step (layer: codec/kernels).
//
// A kernel body is a template over the warp. It keeps what differs between lanes in a struct, works on it lane by lane
// inside Each, and lets lanes know of each other by ballots only. CudaWarp is a warp of a GPU, where a lane is a thread
// and Each runs once in each; HostWarp runs the lanes one after the other, so that a test compares the very same source
// with the CPU's decoders where there is no GPU. Both know nothing of memory: pointers are the caller's.
#pragma once

#include <bit>
#include <cstdint>

#include "codec/kernels/device_function.h"
#include "codec/kernels/rans_tables.h"

namespace modelstore {

struct HostWarp {
  template <typename S>
  struct Lanes {
    S lane[kLanes];
  };

  // f(lane, its state), for each.
  template <typename S, typename F>
  static void Each(Lanes<S>& lanes, const F& f) {
    for (unsigned lane = 0; lane < kLanes; ++lane) f(lane, lanes.lane[lane]);
  }
  // Bit l: what f says of lane l's state.
  template <typename S, typename F>
  static uint32_t Ballot(const Lanes<S>& lanes, const F& f) {
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) ballot |= uint32_t{f(lanes.lane[lane])} << lane;
    return ballot;
  }
  static uint32_t Count(uint32_t ballot) { return static_cast<uint32_t>(std::popcount(ballot)); }
};

#if defined(__CUDACC__)
struct CudaWarp {
  static constexpr uint32_t kAll = 0xffffffff;
  template <typename S>
  using Lanes = S;

  template <typename S, typename F>
  static __device__ __forceinline__ void Each(S& state, const F& f) {
    f(threadIdx.x % kLanes, state);
  }
  template <typename S, typename F>
  static __device__ __forceinline__ uint32_t Ballot(const S& state, const F& f) {
    return __ballot_sync(kAll, f(state));
  }
  static __device__ __forceinline__ uint32_t Count(uint32_t ballot) { return static_cast<uint32_t>(__popc(ballot)); }
};
#endif

// How many lanes before `lane` a ballot names.
template <typename Warp>
MODELSTORE_DEVICE uint32_t RankIn(uint32_t ballot, unsigned lane) {
  return Warp::Count(ballot & ((1u << lane) - 1));
}

}  // namespace modelstore
