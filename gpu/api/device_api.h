// DeviceApi: what a plug-in for GPUs offers, loaded at run time (layer: gpu/api).
//
// A plug-in is a shared library that exports modelstore_device_api. It runs DevicePrograms (codec/device) and knows
// nothing else. Functions of C, plain data: program and plug-in may come from different compilers. Calls for different
// slots may come from different threads; for one slot one at a time. Errors are text; after one from `run` the session
// is only good for closing.
#pragma once

#include <cstdint>

#include "codec/device/device_program.h"

namespace modelstore {

// Changes with every change of this file or of device_program.h, and with what kernels make of them.
inline constexpr uint32_t kDeviceApiVersion = 1;
inline constexpr const char* kDeviceApiSymbol = "modelstore_device_api";
inline constexpr uint32_t kDeviceErrorBytes = 256;

struct DeviceInfo {
  char name[128];
  uint64_t memory_bytes;
  uint32_t multiprocessors;
  uint32_t compute_major, compute_minor;
};

// A session has `slots` of these, each with memory of its own on the host and on the device.
struct DeviceSlots {
  uint32_t count;
  uint64_t input_bytes, output_bytes, scratch_bytes;
};

struct DeviceTimes {
  float upload_ms, kernels_ms, download_ms;
};

struct DeviceSession;

struct DeviceApi {
  uint32_t version;
  // How many devices there are; -1 with an error.
  int (*count)(char* error);
  // True on success, here and below.
  bool (*describe)(int device, DeviceInfo* info, char* error);
  // `constants`: kDeviceConstantBytes, copied. Null with an error: no such device, too little memory, no driver.
  DeviceSession* (*open)(int device, const DeviceSlots* slots, const void* constants, char* error);
  void (*close)(DeviceSession* session);
  // A slot's memory on the host: where programs are made, and where the output arrives.
  void* (*input)(DeviceSession* session, uint32_t slot);
  const void* (*output)(DeviceSession* session, uint32_t slot);
  // Runs the program in the slot's input and waits until its output is there. `times` may be null.
  bool (*run)(DeviceSession* session, uint32_t slot, DeviceTimes* times, char* error);
};

// Null when the plug-in is of another version. Declared as what dlsym gives.
using DeviceApiFunction = const DeviceApi* (*)(uint32_t version);

}  // namespace modelstore
