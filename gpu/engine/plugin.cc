#include "gpu/engine/plugin.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "codec/device/device_constants.h"

namespace modelstore {
namespace {

constexpr const char* kFileName = "libmodelstore_cuda.so";

Status Failed(const std::string& doing, const char* error) {
  return Unavailable(doing + ": " + (error[0] == '\0' ? "no reason given" : error));
}

}  // namespace

std::string Plugin::DefaultPath() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "";
  const std::filesystem::path prefix = program.parent_path().parent_path();
  std::vector<std::filesystem::path> folders = {prefix / "lib" / "modelstore", prefix / "lib"};
#if defined(MODELSTORE_LIBDIR)
  folders.insert(folders.begin(), prefix / MODELSTORE_LIBDIR / "modelstore");
#endif
  for (const std::filesystem::path& folder : folders) {
    const std::filesystem::path path = folder / kFileName;
    if (std::filesystem::exists(path, error)) return path.string();
  }
  return "";
}

Result<std::shared_ptr<const Plugin>> Plugin::Load(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return StatusFromErrno(errno, "the GPU plug-in " + path);
  // What is loaded runs with the daemon's rights.
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0 || (st.st_uid != 0 && st.st_uid != geteuid()))
    return PermissionDenied("the GPU plug-in " + path + " may be changed by others; it is not loaded");
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Unsupported("the GPU plug-in " + path + " does not load: " + dlerror());
  const auto entry = reinterpret_cast<DeviceApiFunction>(dlsym(library, kDeviceApiSymbol));
  const DeviceApi* const api = entry == nullptr ? nullptr : entry(kDeviceApiVersion);
  if (api == nullptr || api->version != kDeviceApiVersion) {
    dlclose(library);
    return Unsupported(path + (entry == nullptr ? " is no plug-in of modelstore"
                                                : " is of another version of modelstore; build both of one"));
  }
  return std::shared_ptr<const Plugin>(new Plugin(path, api));
}

Result<std::vector<DeviceInfo>> Plugin::Devices() const {
  char error[kDeviceErrorBytes] = "";
  const int count = api_->count(error);
  if (count < 0) return Failed("no GPU", error);
  std::vector<DeviceInfo> devices(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    if (!api_->describe(i, &devices[static_cast<size_t>(i)], error)) return Failed("GPU " + std::to_string(i), error);
    devices[static_cast<size_t>(i)].name[sizeof(DeviceInfo::name) - 1] = '\0';
  }
  if (devices.empty()) return Unavailable("no GPU: the driver lists none");
  return devices;
}

Result<std::unique_ptr<PluginSession>> PluginSession::Open(std::shared_ptr<const Plugin> plugin, int device,
                                                           const DeviceSlots& slots) {
  static const Bytes constants = DeviceConstants();
  char error[kDeviceErrorBytes] = "";
  DeviceSession* const session = plugin->api().open(device, &slots, constants.data(), error);
  if (session == nullptr) return Failed("opening GPU " + std::to_string(device), error);
  return std::unique_ptr<PluginSession>(new PluginSession(std::move(plugin), session, slots));
}

PluginSession::~PluginSession() { plugin_->api().close(session_); }

BatchBuilder::Limits PluginSession::limits(uint32_t slot) const {
  return {.input = {static_cast<std::byte*>(plugin_->api().input(session_, slot)), slots_.input_bytes},
          .output_bytes = slots_.output_bytes,
          .scratch_bytes = slots_.scratch_bytes};
}

ByteSpan PluginSession::output(uint32_t slot) const {
  return {static_cast<const std::byte*>(plugin_->api().output(session_, slot)), slots_.output_bytes};
}

Status PluginSession::Run(uint32_t slot, DeviceTimes* times) const {
  char error[kDeviceErrorBytes] = "";
  return plugin_->api().run(session_, slot, times, error) ? OkStatus() : Failed("the GPU failed", error);
}

}  // namespace modelstore
