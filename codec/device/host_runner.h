// Runs a DeviceProgram on the CPU, warp after warp, by the source that GPUs run (layer: codec/device). Headers only, so
// that a plug-in for tests can be made of it. Slow. Thread-safe.
#pragma once

#include <cstring>
#include <utility>

#include "codec/device/device_kernels.h"

namespace modelstore {

class HostRunner {
 public:
  // `spaces`: the program is at the input's beginning; each has as many bytes as it says, and is 16-byte aligned.
  explicit HostRunner(const DeviceSpaces& spaces)
      : spaces_(spaces),
        program_(*At<DeviceProgram>(0)),
        kernels_(std::make_integer_sequence<uint32_t, kDeviceKernels>()) {}

  void Run() const {
    std::memset(spaces_.space[static_cast<unsigned>(DeviceSpace::kOutput)], 1, program_.status_count);
    for (uint32_t i = 0; i < program_.launch_count; ++i) RunAny(At<DeviceLaunch>(program_.launches)[i], kernels_);
  }

 private:
  template <typename T>
  const T* At(uint64_t offset) const {
    return reinterpret_cast<const T*>(spaces_.space[static_cast<unsigned>(DeviceSpace::kInput)] + offset);
  }

  template <DeviceKernel kKernel>
  void Run(const DeviceLaunch& launch) const {
    for (uint32_t i = launch.first; i < launch.first + launch.count; ++i) {
      if constexpr (DecodesStreams(kKernel)) {
        const DeviceGroup& group = At<DeviceGroup>(program_.groups)[i];
        const WarpTables tables = TablesAt(spaces_, At<DeviceTables>(program_.tables)[group.tables]);
        for (uint32_t s = group.first_stream; s < group.first_stream + group.stream_count; ++s)
          RunStream<kKernel, HostWarp>(spaces_, tables, At<DeviceStream>(program_.streams)[s]);
      } else if constexpr (kKernel == DeviceKernel::kUnpack) {
        RunUnpack<HostWarp>(spaces_, At<DeviceUnpack>(program_.unpacks)[i]);
      } else {
        const DeviceTile& tile = At<DeviceTile>(program_.tiles)[i];
        const DevicePiece& piece = At<DevicePiece>(program_.pieces)[tile.piece];
        RunTile<kKernel, HostWarp>(spaces_, piece, tile.begin, spaces_.At<const float>(piece.units));
      }
    }
  }
  template <uint32_t... kIndices>
  void RunAny(const DeviceLaunch& launch, std::integer_sequence<uint32_t, kIndices...>) const {
    ((static_cast<uint32_t>(launch.kernel) == kIndices ? Run<static_cast<DeviceKernel>(kIndices)>(launch) : void()),
     ...);
  }

  const DeviceSpaces spaces_;
  const DeviceProgram& program_;
  const std::make_integer_sequence<uint32_t, kDeviceKernels> kernels_;
};

}  // namespace modelstore
