#include "daemon/service/config.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "catalog/derive/layer_names.h"
#include "codec/support/files.h"
#include "codec/support/size_text.h"

namespace modelstore {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMinMemoryBudgetBytes = 32ull << 20;

// ---- values

Status Wrong(std::string_view expected, const toml::node& found) {
  std::ostringstream type;
  type << found.type();
  return InvalidArgument("expected " + std::string(expected) + ", found " + type.str());
}

Status TakeText(const toml::node& node, std::string* out) {
  const auto text = node.value_exact<std::string>();
  if (!text) return Wrong("a string", node);
  *out = *text;
  return OkStatus();
}

Status TakeLayerNames(const toml::node& node, std::vector<std::string>* out) {
  const toml::array* texts = node.as_array();
  if (texts == nullptr) return Wrong("a list of strings", node);
  out->clear();
  for (const toml::node& text : *texts) {
    RETURN_IF_ERROR(TakeText(text, &out->emplace_back()));
    RETURN_IF_ERROR(ParseLayerScheme(out->back()).status());
  }
  return OkStatus();
}

// An integer of [low, high].
Status TakeCount(const toml::node& node, uint64_t low, uint64_t high, uint32_t* out) {
  const auto value = node.value_exact<int64_t>();
  if (!value) return Wrong("an integer", node);
  if (*value < 0 || static_cast<uint64_t>(*value) < low || static_cast<uint64_t>(*value) > high)
    return InvalidArgument("expected a number from " + std::to_string(low) + " to " + std::to_string(high) +
                           ", found " + std::to_string(*value));
  *out = static_cast<uint32_t>(*value);
  return OkStatus();
}

Status TakeBytes(const toml::node& node, uint64_t low, uint64_t* out) {
  std::optional<uint64_t> bytes;
  if (const auto number = node.value_exact<int64_t>(); number && *number >= 0) bytes = static_cast<uint64_t>(*number);
  if (const auto text = node.value_exact<std::string>()) {
    if (const Result<uint64_t> size = ParseSize(*text); size.ok()) bytes = *size;
  }
  if (!bytes) return Wrong("bytes, or a text like \"512M\" or \"2G\"", node);
  if (*bytes < low)
    return InvalidArgument("expected at least " + std::to_string(low) + " bytes, found " + std::to_string(*bytes));
  *out = *bytes;
  return OkStatus();
}

// A number of [low, high]; or 0 where `or_zero`.
Status TakeNumber(const toml::node& node, double low, double high, bool or_zero, double* out) {
  const auto value = node.value<double>();
  if (!value || node.is_boolean()) return Wrong("a number", node);
  if ((*value < low || *value > high || std::isnan(*value)) && !(or_zero && *value == 0)) {
    std::ostringstream text;
    text << "expected a number from " << low << " to " << high << ", found " << *value;
    return InvalidArgument(text.str());
  }
  *out = *value;
  return OkStatus();
}

// One of `names`, by position.
template <typename Enum>
Status TakeName(const toml::node& node, std::initializer_list<std::string_view> names, Enum* out) {
  std::string text;
  RETURN_IF_ERROR(TakeText(node, &text));
  const auto* const found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) {
    std::string known;
    for (const std::string_view name : names) known += (known.empty() ? "" : ", ") + std::string(name);
    return InvalidArgument("expected one of " + known + ", found '" + text + "'");
  }
  *out = static_cast<Enum>(found - names.begin());
  return OkStatus();
}

struct Key {
  std::string_view name;
  Status (*take)(const toml::node&, Config*);
};

Status TakeGpuMode(const toml::node& node, std::string* out) {
  if (const auto number = node.value_exact<int64_t>(); number && *number >= 0 && *number < 1024) {
    *out = std::to_string(*number);
    return OkStatus();
  }
  const auto text = node.value_exact<std::string>();
  const bool is_number = text && !text->empty() && text->size() < 4 &&
                         std::ranges::all_of(*text, [](char c) { return c >= '0' && c <= '9'; });
  if (!text || (*text != "auto" && *text != "off" && !is_number))
    return Wrong("\"auto\", \"off\" or a GPU's number", node);
  *out = *text;
  return OkStatus();
}

constexpr Key kGpuKeys[] = {
    {"mode", [](const toml::node& n, Config* c) { return TakeGpuMode(n, &c->gpu.mode); }},
    {"memory_bytes", [](const toml::node& n, Config* c) { return TakeBytes(n, 0, &c->gpu.memory_bytes); }},
    {"plugin", [](const toml::node& n, Config* c) { return TakeText(n, &c->gpu.plugin); }},
};

constexpr Key kKeys[] = {
    {"store", [](const toml::node& n, Config* c) { return TakeText(n, &c->store); }},
    {"mount", [](const toml::node& n, Config* c) { return TakeText(n, &c->mount); }},
    {"socket", [](const toml::node& n, Config* c) { return TakeText(n, &c->socket); }},
    {"group", [](const toml::node& n, Config* c) { return TakeText(n, &c->group); }},
    {"memory_budget_bytes",
     [](const toml::node& n, Config* c) { return TakeBytes(n, kMinMemoryBudgetBytes, &c->memory_budget_bytes); }},
    {"read_ahead_kb", [](const toml::node& n, Config* c) { return TakeCount(n, 4, 1 << 20, &c->read_ahead_kb); }},
    {"threads", [](const toml::node& n, Config* c) { return TakeCount(n, 0, 1024, &c->threads); }},
    {"max_clients", [](const toml::node& n, Config* c) { return TakeCount(n, 1, 4096, &c->max_clients); }},
    {"shutdown_seconds", [](const toml::node& n, Config* c) { return TakeCount(n, 1, 3600, &c->shutdown_seconds); }},
    {"log_level",
     [](const toml::node& n, Config* c) {
       return TakeName(n, {"debug", "info", "warning", "error"}, &c->log_level);
     }},
    {"log_format",
     [](const toml::node& n, Config* c) {
       return TakeName(n, {"text", "json"}, &c->log_format);
     }},
    {"compact_below_free_bytes",
     [](const toml::node& n, Config* c) { return TakeBytes(n, 0, &c->compact_below_free_bytes); }},
    {"compact_max_drift",
     [](const toml::node& n, Config* c) { return TakeNumber(n, 0, 1, false, &c->compact_max_drift); }},
    {"compact_target_ratio",
     [](const toml::node& n, Config* c) { return TakeNumber(n, 1, 1e6, true, &c->compact_target_ratio); }},
    {"layer_names", [](const toml::node& n, Config* c) { return TakeLayerNames(n, &c->layer_names); }},
    {"metrics", [](const toml::node& n, Config* c) { return TakeText(n, &c->metrics); }},
    {"access_log",
     [](const toml::node& n, Config* c) {
       const auto value = n.value_exact<bool>();
       if (!value) return Wrong("true or false", n);
       c->access_log = *value;
       return OkStatus();
     }},
};

// ---- the file

// Levenshtein's.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

Status UnknownKey(const std::string& prefix, std::string_view name, std::span<const Key> known) {
  const auto nearest = std::min_element(known.begin(), known.end(), [&](const Key& a, const Key& b) {
    return Distance(name, a.name) < Distance(name, b.name);
  });
  return InvalidArgument("unknown key '" + prefix + std::string(name) + "'; the nearest known one is '" + prefix +
                         std::string(nearest->name) + "'");
}

// `prefix`: of the keys' names, for messages.
Status TakeTable(const toml::table& table, const std::string& path, const std::string& prefix,
                 std::span<const Key> known, Config* config) {
  const auto at = [&](const toml::source_region& where) { return path + ":" + std::to_string(where.begin.line); };
  for (const auto& [name, node] : table) {
    if (prefix.empty() && name.str() == "gpu" && node.is_table()) {
      RETURN_IF_ERROR(TakeTable(*node.as_table(), path, "gpu.", kGpuKeys, config));
      continue;
    }
    const auto key = std::ranges::find(known, name.str(), &Key::name);
    if (key == known.end() && prefix.empty() && name.str() == "gpu")
      return InvalidArgument("gpu is a table: [gpu], and its keys below").WithContext(at(node.source()));
    if (key == known.end()) return UnknownKey(prefix, name.str(), known).WithContext(at(node.source()));
    RETURN_IF_ERROR(key->take(node, config).WithContext(at(node.source()) + ": " + prefix + std::string(key->name)));
  }
  return OkStatus();
}

Status ReadFile(const std::string& path, Config* config) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored))
    return InvalidArgument("the configuration " + path + " is a folder; name the file in it");
  std::ifstream file(path, std::ios::binary);
  if (!file) return StatusFromErrno(errno, "reading the configuration " + path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return StatusFromErrno(errno, "reading the configuration " + path);
  const toml::parse_result parsed = toml::parse(text, path);
  const auto at = [&](const toml::source_region& where) { return path + ":" + std::to_string(where.begin.line); };
  if (!parsed) return InvalidArgument(at(parsed.error().source()) + ": " + std::string(parsed.error().description()));
  return TakeTable(parsed.table(), path, "", kKeys, config);
}

// ---- defaults

std::string Or(const std::string& preferred, const std::string& otherwise) {
  return preferred.empty() ? otherwise : preferred;
}

struct Defaults {
  std::string config, store, mount, socket;  // "": there is none
};

Defaults DefaultsOf(const Environment& environment) {
  if (environment.root)
    return {"/etc/modelstore/config.toml", "/var/lib/modelstore", "/models", "/run/modelstore/modelstore.sock"};
  const std::string& home = environment.home;
  const std::string data = Or(environment.xdg_data_home, home.empty() ? "" : home + "/.local/share");
  const std::string config = Or(environment.xdg_config_home, home.empty() ? "" : home + "/.config");
  const auto below = [](const std::string& folder, const char* path) { return folder.empty() ? "" : folder + path; };
  return {below(config, "/modelstore/config.toml"), below(data, "/modelstore"), below(home, "/models"),
          below(environment.xdg_runtime_dir, "/modelstore/modelstore.sock")};
}

// `key`: as the file and the flags call it. "" stays.
Status MakeAbsolute(std::string_view key, const Environment& environment, std::string* path) {
  if (path->empty()) return OkStatus();
  Result<std::string> expanded = ExpandHome(*path, environment.home);
  if (!expanded.ok()) return expanded.status().WithContext(key);
  std::error_code error;
  const fs::path absolute = fs::absolute(*expanded, error);
  if (error) return StatusFromErrno(error.value(), "finding the current folder");
  *path = absolute.lexically_normal().string();
  return OkStatus();
}

std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

Environment Environment::OfProcess() {
  return {geteuid() == 0, Variable("HOME"), Variable("XDG_DATA_HOME"), Variable("XDG_CONFIG_HOME"),
          Variable("XDG_RUNTIME_DIR")};
}

Result<DaemonFlags> ParseFlags(const std::vector<std::string>& arguments) {
  DaemonFlags flags;
  const std::pair<std::string_view, std::optional<std::string>*> valued[] = {
      {"--config", &flags.config}, {"--store", &flags.store}, {"--mount", &flags.mount}, {"--socket", &flags.socket}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--version") {
      flags.version = true;
      continue;
    }
    if (argument == "--probe-gpu" && i + 2 < arguments.size()) {
      flags.probe_gpu = {arguments[i + 1], arguments[i + 2]};
      return flags;
    }
    if (argument == "--help" || argument == "-h") {
      flags.help = true;
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string_view name = argument.substr(0, equals);
    const auto* const flag =
        std::find_if(std::begin(valued), std::end(valued), [&](const auto& v) { return v.first == name; });
    if (flag == std::end(valued))
      return InvalidArgument("unknown argument '" + std::string(argument) + "'; modelstored --help lists them");
    if (equals != std::string_view::npos) {
      *flag->second = std::string(argument.substr(equals + 1));
    } else if (i + 1 < arguments.size()) {
      *flag->second = arguments[++i];
    } else {
      return InvalidArgument(std::string(name) + " needs a value");
    }
  }
  return flags;
}

Result<Config> LoadConfig(const DaemonFlags& flags, const Environment& environment) {
  const Defaults defaults = DefaultsOf(environment);
  Config config;
  config.store = defaults.store;
  config.mount = defaults.mount;
  config.socket = defaults.socket;
  if (flags.config) {
    std::string path = *flags.config;
    RETURN_IF_ERROR(MakeAbsolute("--config", environment, &path));
    RETURN_IF_ERROR(ReadFile(path, &config));
  } else if (std::error_code ignored; !defaults.config.empty() && fs::exists(defaults.config, ignored)) {
    RETURN_IF_ERROR(ReadFile(defaults.config, &config));
  }
  if (flags.store) config.store = *flags.store;
  if (flags.mount) config.mount = *flags.mount;
  if (flags.socket) config.socket = *flags.socket;
  if (config.store.empty()) return InvalidArgument("no store folder: HOME is not set; pass --store DIR");
  if (config.socket.empty()) return InvalidArgument("no socket: XDG_RUNTIME_DIR is not set; pass --socket PATH");
  RETURN_IF_ERROR(MakeAbsolute("store", environment, &config.store));
  RETURN_IF_ERROR(MakeAbsolute("mount", environment, &config.mount));
  RETURN_IF_ERROR(MakeAbsolute("socket", environment, &config.socket));
  RETURN_IF_ERROR(MakeAbsolute("gpu.plugin", environment, &config.gpu.plugin));
  // A loopback address and port is no path; MetricsServer says what else a path must be.
  if (config.metrics.starts_with('~')) RETURN_IF_ERROR(MakeAbsolute("metrics", environment, &config.metrics));
  return config;
}

}  // namespace modelstore
