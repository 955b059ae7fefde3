// What modelstored is told: a TOML file, flags that win over it, and defaults (layer: daemon/service). Values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "codec/support/log.h"
#include "codec/support/status.h"

namespace modelstore {

enum class LogFormat : uint8_t { kText, kJson };

// The table [gpu].
struct GpuConfig {
  std::string mode = "auto";             // "auto", "off" or a device's number
  uint64_t memory_bytes = 256ull << 20;  // of the device, at most
  std::string plugin;                    // path; "": where it is installed
};

// The keys of the file are the names of the fields.
struct Config {
  std::string store;   // folder; created when missing
  std::string mount;   // folder; "": no mount
  std::string socket;  // path
  std::string group = "modelstore";
  uint64_t memory_budget_bytes = 2ull << 30;
  uint32_t read_ahead_kb = 8192;
  uint32_t threads = 0;  // that decode and encode; 0: one a core
  uint32_t max_clients = 256;
  uint32_t shutdown_seconds = 30;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
  bool access_log = false;
  // When less is free on the store's disk, models that allow it are made compact, the oldest first. 0: never.
  uint64_t compact_below_free_bytes = 0;
  double compact_max_drift = 0.05;       // none is made compact beyond
  double compact_target_ratio = 0;       // to which; 0: as small as the drift allows
  std::vector<std::string> layer_names;  // of models that derive would not know: model.layers.{}.
  std::string metrics;                   // a path, or a loopback address and port; "": none
  GpuConfig gpu;
};

struct DaemonFlags {
  std::optional<std::string> config{}, store{}, mount{}, socket{};
  bool version = false, help = false;
  std::vector<std::string> probe_gpu{};  // plug-in and device: for the child that starts a GPU's driver first
};

// What the defaults depend on.
struct Environment {
  bool root = false;
  std::string home, xdg_data_home, xdg_config_home, xdg_runtime_dir;  // "": not set

  static Environment OfProcess();
};

// `--name VALUE` and `--name=VALUE`. Errors: InvalidArgument.
Result<DaemonFlags> ParseFlags(const std::vector<std::string>& arguments);

// Defaults, then the file (--config, or the default one when it exists), then the flags. Paths come back absolute.
// Errors: NotFound, PermissionDenied (the file), InvalidArgument (naming file, line and key; for an unknown key the
// nearest known one).
Result<Config> LoadConfig(const DaemonFlags& flags, const Environment& environment);

}  // namespace modelstore
