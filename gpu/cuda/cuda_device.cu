// The CUDA plug-in: kernels around the bodies that codec/device and codec/kernels give, and their memory and streams.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "codec/device/device_kernels.h"
#include "gpu/api/device_api.h"

namespace modelstore {
namespace {

constexpr unsigned kWarpsPerBlock = kGroupStreams;
constexpr unsigned kThreads = kWarpsPerBlock * kLanes;
static_assert(kLanes == 32);
// Blocks of a multiprocessor, and so registers of a thread, that the compiler is held to where it would rather spill:
// patterns of 64 bits need more than others, which get by with 32. 0: as it likes.
template <DeviceKernel kKernel>
constexpr unsigned kStreamBlocks = StreamTraits<kKernel>::kBytes == 8 ? 4 : 0;
// A multiprocessor's, of the kernels that make compact tensors: 80 registers a thread, of which none spills.
constexpr unsigned kCompactBlocks = 3;

template <typename T>
__device__ __forceinline__ const T* ArrayAt(const DeviceSpaces& spaces, uint64_t offset) {
  return reinterpret_cast<const T*>(spaces.space[static_cast<unsigned>(DeviceSpace::kInput)] + offset);
}

__device__ __forceinline__ void CopyTogether(const void* from, void* to, uint32_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes / sizeof(uint32_t); i += kThreads)
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
}

// A group of streams: its tables in shared memory, a warp a stream.
template <DeviceKernel kKernel>
__global__ void __launch_bounds__(kThreads, kStreamBlocks<kKernel>)
    DecodeGroups(DeviceSpaces spaces, DeviceProgram program, uint32_t first) {
  using Traits = StreamTraits<kKernel>;
  constexpr uint32_t kContexts = Traits::kDelta ? kDeltaContexts : kSelfClasses;
  constexpr uint32_t kSymbols = Traits::kDelta ? kDeltaContexts * kDeltaSymbols : kMaxTableSymbols;
  __shared__ alignas(16) uint8_t slots[kContexts << kProbBits];
  __shared__ WarpSymbol symbols[kSymbols];
  __shared__ uint32_t high_bases[Traits::kBytes == 8 ? kSymbols : 1];
  const DeviceGroup group = ArrayAt<DeviceGroup>(spaces, program.groups)[first + blockIdx.x];
  const DeviceTables& of_tensor = ArrayAt<DeviceTables>(spaces, program.tables)[group.tables];
  WarpTables tables = TablesAt(spaces, of_tensor);
  CopyTogether(tables.slots, slots, sizeof(slots));
  CopyTogether(tables.symbols, symbols, sizeof(symbols));
  if constexpr (Traits::kBytes == 8) CopyTogether(tables.high_bases, high_bases, sizeof(high_bases));
  tables.slots = slots;
  tables.symbols = symbols;
  tables.high_bases = high_bases;
  __syncthreads();
  const unsigned warp = threadIdx.x / kLanes;
  if (warp >= group.stream_count) return;
  RunStream<kKernel, CudaWarp>(spaces, tables,
                               ArrayAt<DeviceStream>(spaces, program.streams)[group.first_stream + warp]);
}

// An unpacking or a tile a warp.
template <DeviceKernel kKernel>
__global__ void __launch_bounds__(kThreads, kCompactBlocks)
    MakeCompact(DeviceSpaces spaces, DeviceProgram program, uint32_t first, uint32_t count) {
  const uint32_t warp = threadIdx.x / kLanes;
  const uint32_t at = blockIdx.x * kWarpsPerBlock + warp;
  if (at >= count) return;
  if constexpr (kKernel == DeviceKernel::kUnpack) {
    RunUnpack<CudaWarp>(spaces, ArrayAt<DeviceUnpack>(spaces, program.unpacks)[first + at]);
  } else {
    const DeviceTile tile = ArrayAt<DeviceTile>(spaces, program.tiles)[first + at];
    const DevicePiece& piece = ArrayAt<DevicePiece>(spaces, program.pieces)[tile.piece];
    // Looked up for every element: in shared memory, a copy for each warp.
    __shared__ float units[kWarpsPerBlock][kWarpUnits];
    if (const float* from = spaces.At<const float>(piece.units); from != nullptr) {
      for (uint32_t i = threadIdx.x % kLanes; i < kWarpUnits; i += kLanes) units[warp][i] = from[i];
    }
    __syncwarp();
    RunTile<kKernel, CudaWarp>(spaces, piece, tile.begin, units[warp]);
  }
}

template <DeviceKernel kKernel>
void Launch(const DeviceSpaces& spaces, const DeviceProgram& program, const DeviceLaunch& launch, cudaStream_t stream) {
  if constexpr (DecodesStreams(kKernel)) {
    DecodeGroups<kKernel><<<launch.count, kThreads, 0, stream>>>(spaces, program, launch.first);
  } else {
    const unsigned blocks = (launch.count + kWarpsPerBlock - 1) / kWarpsPerBlock;
    MakeCompact<kKernel><<<blocks, kThreads, 0, stream>>>(spaces, program, launch.first, launch.count);
  }
}

template <uint32_t... kIndices>
void LaunchAny(const DeviceSpaces& spaces, const DeviceProgram& program, const DeviceLaunch& launch,
               cudaStream_t stream, std::integer_sequence<uint32_t, kIndices...>) {
  ((static_cast<uint32_t>(launch.kernel) == kIndices
        ? Launch<static_cast<DeviceKernel>(kIndices)>(spaces, program, launch, stream)
        : void()),
   ...);
}

bool Failed(cudaError_t code, const char* doing, char* error) {
  if (code == cudaSuccess) return false;
  std::snprintf(error, kDeviceErrorBytes, "%s: %s", doing, cudaGetErrorString(code));
  cudaGetLastError();  // one that does not stick is told once
  return true;
}

struct Slot {
  std::byte* host_input = nullptr;
  std::byte* host_output = nullptr;
  DeviceSpaces device;
  cudaStream_t stream = nullptr;
  cudaEvent_t events[4] = {};
};

}  // namespace

struct DeviceSession {
  int device = 0;
  DeviceSlots sizes{};
  std::vector<Slot> slots;
  std::byte* constants = nullptr;

  ~DeviceSession() {
    cudaSetDevice(device);
    for (Slot& slot : slots) {
      if (slot.stream != nullptr) cudaStreamSynchronize(slot.stream);
      cudaFreeHost(slot.host_input);
      cudaFreeHost(slot.host_output);
      for (const DeviceSpace space : {DeviceSpace::kInput, DeviceSpace::kOutput, DeviceSpace::kScratch})
        cudaFree(slot.device.space[static_cast<unsigned>(space)]);
      for (const cudaEvent_t event : slot.events) {
        if (event != nullptr) cudaEventDestroy(event);
      }
      if (slot.stream != nullptr) cudaStreamDestroy(slot.stream);
    }
    cudaFree(constants);
  }
};

namespace {

int Count(char* error) {
  int count = 0;
  if (Failed(cudaGetDeviceCount(&count), "looking for devices", error)) return -1;
  return count;
}

bool Describe(int device, DeviceInfo* info, char* error) {
  cudaDeviceProp properties;
  if (Failed(cudaGetDeviceProperties(&properties, device), "asking for a device's properties", error)) return false;
  *info = {};
  std::snprintf(info->name, sizeof(info->name), "%s", properties.name);
  info->memory_bytes = properties.totalGlobalMem;
  info->multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  info->compute_major = static_cast<uint32_t>(properties.major);
  info->compute_minor = static_cast<uint32_t>(properties.minor);
  return true;
}

bool OpenSlot(const DeviceSlots& sizes, std::byte* constants, Slot* slot, char* error) {
  const auto on_device = [&](DeviceSpace space, uint64_t bytes) {
    return !Failed(cudaMalloc(&slot->device.space[static_cast<unsigned>(space)], bytes), "taking device memory", error);
  };
  slot->device.space[static_cast<unsigned>(DeviceSpace::kConstants)] = constants;
  if (Failed(cudaMallocHost(&slot->host_input, sizes.input_bytes), "taking pinned memory", error) ||
      Failed(cudaMallocHost(&slot->host_output, sizes.output_bytes), "taking pinned memory", error) ||
      !on_device(DeviceSpace::kInput, sizes.input_bytes) || !on_device(DeviceSpace::kOutput, sizes.output_bytes) ||
      !on_device(DeviceSpace::kScratch, sizes.scratch_bytes) ||
      Failed(cudaStreamCreateWithFlags(&slot->stream, cudaStreamNonBlocking), "making a stream", error))
    return false;
  for (cudaEvent_t& event : slot->events) {
    if (Failed(cudaEventCreate(&event), "making an event", error)) return false;
  }
  return true;
}

DeviceSession* Open(int device, const DeviceSlots* slots, const void* constants, char* error) {
  std::unique_ptr<DeviceSession> session(new (std::nothrow) DeviceSession);
  if (session == nullptr) return nullptr;
  session->device = device;
  session->sizes = *slots;
  if (Failed(cudaSetDevice(device), "choosing a device", error) ||
      Failed(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync), "setting a device up", error) ||
      Failed(cudaMalloc(&session->constants, kDeviceConstantBytes), "taking device memory", error) ||
      Failed(cudaMemcpy(session->constants, constants, kDeviceConstantBytes, cudaMemcpyHostToDevice), "uploading",
             error))
    return nullptr;
  session->slots.resize(slots->count);
  for (Slot& slot : session->slots) {
    if (!OpenSlot(*slots, session->constants, &slot, error)) return nullptr;
  }
  return session.release();
}

void Close(DeviceSession* session) { delete session; }
void* Input(DeviceSession* session, uint32_t slot) { return session->slots[slot].host_input; }
const void* Output(DeviceSession* session, uint32_t slot) { return session->slots[slot].host_output; }

bool Run(DeviceSession* session, uint32_t index, DeviceTimes* times, char* error) {
  Slot& slot = session->slots[index];
  DeviceProgram program;
  std::memcpy(&program, slot.host_input, sizeof(program));
  std::byte* const output = slot.device.space[static_cast<unsigned>(DeviceSpace::kOutput)];
  const auto* launches = reinterpret_cast<const DeviceLaunch*>(slot.host_input + program.launches);
  if (Failed(cudaSetDevice(session->device), "choosing the device", error)) return false;
  cudaEventRecord(slot.events[0], slot.stream);
  cudaMemcpyAsync(slot.device.space[static_cast<unsigned>(DeviceSpace::kInput)], slot.host_input, program.input_bytes,
                  cudaMemcpyHostToDevice, slot.stream);
  cudaMemsetAsync(output, 1, program.status_count, slot.stream);
  cudaEventRecord(slot.events[1], slot.stream);
  for (uint32_t i = 0; i < program.launch_count; ++i)
    LaunchAny(slot.device, program, launches[i], slot.stream, std::make_integer_sequence<uint32_t, kDeviceKernels>());
  cudaEventRecord(slot.events[2], slot.stream);
  cudaMemcpyAsync(slot.host_output, output, program.output_bytes, cudaMemcpyDeviceToHost, slot.stream);
  cudaEventRecord(slot.events[3], slot.stream);
  if (Failed(cudaGetLastError(), "starting kernels", error) ||
      Failed(cudaStreamSynchronize(slot.stream), "running kernels", error))
    return false;
  if (times != nullptr) {
    float* const spans[] = {&times->upload_ms, &times->kernels_ms, &times->download_ms};
    for (int i = 0; i < 3; ++i) {
      if (Failed(cudaEventElapsedTime(spans[i], slot.events[i], slot.events[i + 1]), "reading times", error))
        return false;
    }
  }
  return true;
}

constexpr DeviceApi kApi = {kDeviceApiVersion, Count, Describe, Open, Close, Input, Output, Run};

}  // namespace
}  // namespace modelstore

extern "C" __attribute__((visibility("default"))) const modelstore::DeviceApi* modelstore_device_api(uint32_t version) {
  return version == modelstore::kDeviceApiVersion ? &modelstore::kApi : nullptr;
}
