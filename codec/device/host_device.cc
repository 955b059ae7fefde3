#include "codec/device/host_device.h"

#include <cstring>
#include <utility>

#include "codec/device/device_kernels.h"

namespace modelstore {
namespace {

template <typename T>
const T* ArrayAt(ByteSpan input, uint64_t offset) {
  return reinterpret_cast<const T*>(input.data() + offset);
}

struct Runner {
  ByteSpan input;
  const DeviceProgram& program;
  const DeviceSpaces& spaces;

  template <DeviceKernel kKernel>
  void Run(const DeviceLaunch& launch) const {
    for (uint32_t i = launch.first; i < launch.first + launch.count; ++i) {
      if constexpr (DecodesStreams(kKernel)) {
        const DeviceGroup& group = ArrayAt<DeviceGroup>(input, program.groups)[i];
        const WarpTables tables = TablesAt(spaces, ArrayAt<DeviceTables>(input, program.tables)[group.tables]);
        for (uint32_t s = group.first_stream; s < group.first_stream + group.stream_count; ++s)
          RunStream<kKernel, HostWarp>(spaces, tables, ArrayAt<DeviceStream>(input, program.streams)[s]);
      } else if constexpr (kKernel == DeviceKernel::kUnpack) {
        RunUnpack<HostWarp>(spaces, ArrayAt<DeviceUnpack>(input, program.unpacks)[i]);
      } else {
        const DeviceTile& tile = ArrayAt<DeviceTile>(input, program.tiles)[i];
        RunTile<kKernel, HostWarp>(spaces, ArrayAt<DevicePiece>(input, program.pieces)[tile.piece], tile.begin);
      }
    }
  }
  template <uint32_t... kIndices>
  void Run(const DeviceLaunch& launch, std::integer_sequence<uint32_t, kIndices...>) const {
    ((static_cast<uint32_t>(launch.kernel) == kIndices ? Run<static_cast<DeviceKernel>(kIndices)>(launch) : void()),
     ...);
  }
};

}  // namespace

HostBatch::HostBatch(uint64_t bytes)
    : bytes_(bytes),
      input_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      output_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      scratch_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      builder_({.input = {input_.get(), bytes}, .output_bytes = bytes, .scratch_bytes = bytes}) {}

void HostBatch::Run() {
  builder_.Finish();
  RunOnHost({input_.get(), bytes_}, {output_.get(), bytes_}, {scratch_.get(), bytes_});
}

Bytes DeviceConstants() {
  Bytes constants(kDeviceConstantBytes);
  for (uint32_t pattern = 0; pattern < kWarpTokenPatterns; ++pattern) {
    const auto narrow = static_cast<uint16_t>(pattern);
    int8_t pair[2], quad[4];
    const auto* bytes = reinterpret_cast<const std::byte*>(&narrow);
    TokensToLevels(bytes, 1, 2, pair);
    TokensToLevels(bytes, 1, 4, quad);
    std::memcpy(constants.data() + pattern * sizeof(pair), pair, sizeof(pair));
    std::memcpy(constants.data() + kDevicePairBytes + pattern * sizeof(quad), quad, sizeof(quad));
  }
  return constants;
}

void RunOnHost(MutableByteSpan input, MutableByteSpan output, MutableByteSpan scratch) {
  static Bytes constants = DeviceConstants();
  const DeviceProgram& program = *ArrayAt<DeviceProgram>(input, 0);
  const DeviceSpaces spaces = {{input.data(), output.data(), scratch.data(), constants.data()}};
  std::memset(output.data(), 1, program.status_count);
  const Runner runner{input, program, spaces};
  for (uint32_t i = 0; i < program.launch_count; ++i)
    runner.Run(ArrayAt<DeviceLaunch>(input, program.launches)[i],
               std::make_integer_sequence<uint32_t, kDeviceKernels>());
}

}  // namespace modelstore
