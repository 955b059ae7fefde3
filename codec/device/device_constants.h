// What every device keeps from its opening on (layer: codec/device). Pure.
#pragma once

#include "codec/device/device_program.h"
#include "codec/support/bytes.h"

namespace modelstore {

// kDeviceConstantBytes: the levels of every token's pattern, pairs first.
Bytes DeviceConstants();

}  // namespace modelstore
