// Plugin: a loaded plug-in for GPUs and sessions on its devices (layer: gpu/engine).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "codec/device/batch_builder.h"
#include "codec/support/bytes.h"
#include "codec/support/status.h"
#include "gpu/api/device_api.h"

namespace modelstore {

class Plugin {
 public:
  // `path`: the shared library. It stays loaded until the process ends. Errors: NotFound (no such file), Unsupported
  // (no plug-in, or one of another version), PermissionDenied (others may change the file), Io.
  static Result<std::shared_ptr<const Plugin>> Load(const std::string& path);
  // Where a plug-in is looked for, given none: lib/modelstore and lib beside the program's folder. "" when there is
  // none.
  static std::string DefaultPath();

  const std::string& path() const { return path_; }
  // Errors: Unavailable (no driver, no device).
  Result<std::vector<DeviceInfo>> Devices() const;
  const DeviceApi& api() const { return *api_; }

 private:
  Plugin(std::string path, const DeviceApi* api) : path_(std::move(path)), api_(api) {}
  const std::string path_;
  const DeviceApi* const api_;
};

// A device with slots open. Calls for different slots may come from different threads.
class PluginSession {
 public:
  // Errors: Unavailable (no such device, no memory left on it).
  static Result<std::unique_ptr<PluginSession>> Open(std::shared_ptr<const Plugin> plugin, int device,
                                                     const DeviceSlots& slots);
  ~PluginSession();
  PluginSession(const PluginSession&) = delete;
  PluginSession& operator=(const PluginSession&) = delete;

  const DeviceSlots& slots() const { return slots_; }
  // For making a program in the slot.
  BatchBuilder::Limits limits(uint32_t slot) const;
  ByteSpan output(uint32_t slot) const;
  // Errors: Unavailable.
  Status Run(uint32_t slot, DeviceTimes* times = nullptr) const;

 private:
  PluginSession(std::shared_ptr<const Plugin> plugin, DeviceSession* session, const DeviceSlots& slots)
      : plugin_(std::move(plugin)), session_(session), slots_(slots) {}
  const std::shared_ptr<const Plugin> plugin_;
  DeviceSession* const session_;
  const DeviceSlots slots_;
};

}  // namespace modelstore
