#include "codec/device/host_device.h"

#include <utility>

#include "codec/device/device_constants.h"
#include "codec/device/host_runner.h"

namespace modelstore {

HostBatch::Spare& HostBatch::SpareOfThread() {
  static thread_local Spare spare;
  return spare;
}

HostBatch::Spare HostBatch::Take(uint64_t bytes) {
  Spare taken = std::exchange(SpareOfThread(), {});
  if (taken.bytes == bytes) return taken;
  return {bytes, std::make_unique_for_overwrite<std::byte[]>(bytes), std::make_unique_for_overwrite<std::byte[]>(bytes),
          std::make_unique_for_overwrite<std::byte[]>(bytes)};
}

HostBatch::HostBatch(uint64_t bytes)
    : memory_(Take(bytes)),
      builder_({.input = {memory_.input.get(), bytes}, .output_bytes = bytes, .scratch_bytes = bytes}) {}

HostBatch::~HostBatch() { SpareOfThread() = std::move(memory_); }

void HostBatch::Run() {
  static Bytes constants = DeviceConstants();
  builder_.Finish();
  HostRunner(DeviceSpaces{{memory_.input.get(), memory_.output.get(), memory_.scratch.get(), constants.data()}}).Run();
}

}  // namespace modelstore
