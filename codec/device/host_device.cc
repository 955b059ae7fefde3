#include "codec/device/host_device.h"

#include "codec/device/device_constants.h"
#include "codec/device/host_runner.h"

namespace modelstore {

HostBatch::HostBatch(uint64_t bytes)
    : bytes_(bytes),
      input_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      output_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      scratch_(std::make_unique_for_overwrite<std::byte[]>(bytes)),
      builder_({.input = {input_.get(), bytes}, .output_bytes = bytes, .scratch_bytes = bytes}) {}

void HostBatch::Run() {
  static Bytes constants = DeviceConstants();
  builder_.Finish();
  HostRunner(DeviceSpaces{{input_.get(), output_.get(), scratch_.get(), constants.data()}}).Run();
}

}  // namespace modelstore
