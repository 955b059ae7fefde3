#include "codec/device/device_constants.h"

#include <cstring>

namespace modelstore {

Bytes DeviceConstants() {
  Bytes constants(kDeviceConstantBytes);
  for (uint32_t pattern = 0; pattern < kWarpTokenPatterns; ++pattern) {
    const auto narrow = static_cast<uint16_t>(pattern);
    const auto* bytes = reinterpret_cast<const std::byte*>(&narrow);
    int8_t pair[2], quad[4];
    TokensToLevels(bytes, 1, 2, pair);
    TokensToLevels(bytes, 1, 4, quad);
    std::memcpy(constants.data() + pattern * sizeof(pair), pair, sizeof(pair));
    std::memcpy(constants.data() + kDevicePairBytes + pattern * sizeof(quad), quad, sizeof(quad));
  }
  return constants;
}

}  // namespace modelstore
