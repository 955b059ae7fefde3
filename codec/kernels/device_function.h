// MODELSTORE_DEVICE: a function of one source for the CPU and, where CUDA compiles it, for GPUs (layer: codec/kernels).
#pragma once

#if defined(__CUDACC__)
#define MODELSTORE_DEVICE __host__ __device__ __forceinline__
#else
#define MODELSTORE_DEVICE inline
#endif
