// A plug-in whose device is the host model: for tests of what is around a GPU. MODELSTORE_TEST_GPU says how it fails:
//   crash      the first session takes the process down
//   hang       no session ever opens
//   wrong      some bits of every output are others
//   full       there is no memory for sessions
//   gone:N     the device disappears after N runs
//   until:F    the device disappears when the file F is there
//   blind:F    from then on every block is called damaged
//   none       there is no device
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "codec/device/host_runner.h"
#include "gpu/api/device_api.h"

namespace modelstore {

struct DeviceSession {
  struct Slot {
    std::unique_ptr<std::byte[]> input, output, scratch;
  };
  std::vector<Slot> slots;
  std::vector<std::byte> constants;
  std::string fault;
  std::atomic<int> runs_left{-1};
};

namespace {

std::string Fault() {
  const char* const fault = std::getenv("MODELSTORE_TEST_GPU");
  return fault == nullptr ? "" : fault;
}

void Say(char* error, const char* what) { std::snprintf(error, kDeviceErrorBytes, "%s", what); }

int Count(char* error) {
  if (Fault() != "none") return 1;
  Say(error, "no driver is there");
  return -1;
}

bool Describe(int, DeviceInfo* info, char*) {
  *info = {};
  Say(info->name, "host model");
  info->memory_bytes = uint64_t{1} << 30;
  info->multiprocessors = 1;
  return true;
}

DeviceSession* Open(int device, const DeviceSlots* sizes, const void* constants, char* error) {
  const std::string fault = Fault();
  if (fault == "crash") std::abort();
  if (fault == "hang") pause();
  if (fault == "full" || device != 0) {
    Say(error, "out of memory");
    return nullptr;
  }
  auto session = std::make_unique<DeviceSession>();
  session->fault = fault;
  if (fault.starts_with("gone:")) session->runs_left = std::atoi(fault.c_str() + 5);
  const auto* bytes = static_cast<const std::byte*>(constants);
  session->constants.assign(bytes, bytes + kDeviceConstantBytes);
  for (uint32_t i = 0; i < sizes->count; ++i)
    session->slots.push_back({std::make_unique_for_overwrite<std::byte[]>(sizes->input_bytes),
                              std::make_unique_for_overwrite<std::byte[]>(sizes->output_bytes),
                              std::make_unique_for_overwrite<std::byte[]>(sizes->scratch_bytes)});
  return session.release();
}

void Close(DeviceSession* session) { delete session; }
void* Input(DeviceSession* session, uint32_t slot) { return session->slots[slot].input.get(); }
const void* Output(DeviceSession* session, uint32_t slot) { return session->slots[slot].output.get(); }

bool Run(DeviceSession* session, uint32_t index, DeviceTimes* times, char* error) {
  if (session->runs_left == 0) {
    Say(error, "the device fell off the bus");
    return false;
  }
  if (session->runs_left > 0) --session->runs_left;
  const bool is_there = session->fault.size() > 6 && access(session->fault.c_str() + 6, F_OK) == 0;
  if (is_there && session->fault.starts_with("until:")) {
    Say(error, "the device fell off the bus");
    return false;
  }
  DeviceSession::Slot& slot = session->slots[index];
  HostRunner(DeviceSpaces{{slot.input.get(), slot.output.get(), slot.scratch.get(), session->constants.data()}}).Run();
  DeviceProgram program;
  std::memcpy(&program, slot.input.get(), sizeof(program));
  for (uint64_t part = 1; session->fault == "wrong" && part < 8; ++part)
    slot.output[program.output_bytes / 8 * part] ^= std::byte{1};
  if (is_there && session->fault.starts_with("blind:")) std::memset(slot.output.get(), 0, program.status_count);
  if (times != nullptr) *times = {1, 1, 1};
  return true;
}

constexpr DeviceApi kApi = {kDeviceApiVersion, Count, Describe, Open, Close, Input, Output, Run};

}  // namespace
}  // namespace modelstore

extern "C" __attribute__((visibility("default"))) const modelstore::DeviceApi* modelstore_device_api(uint32_t version) {
  return version == modelstore::kDeviceApiVersion ? &modelstore::kApi : nullptr;
}
