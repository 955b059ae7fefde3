#include <cstdio>
#include <exception>

#include "codec/support/process.h"
#include "daemon/service/config.h"
#include "daemon/service/log_setup.h"
#include "daemon/service/service.h"
#include "gpu/engine/gpu_probe.h"

namespace modelstore {
namespace {

constexpr char kHelp[] =
    "usage: modelstored [--config FILE] [--store DIR] [--mount DIR] [--socket PATH]\n"
    "\n"
    "Serves a model store to its clients on a Unix socket and to everyone as files, in the foreground.\n"
    "\n"
    "  --config FILE   TOML (default: /etc/modelstore/config.toml; as an ordinary user\n"
    "                  $XDG_CONFIG_HOME/modelstore/config.toml)\n"
    "  --store DIR     default: /var/lib/modelstore; as an ordinary user $XDG_DATA_HOME/modelstore\n"
    "  --mount DIR     default: /models; as an ordinary user ~/models; '' for none\n"
    "  --socket PATH   default: /run/modelstore/modelstore.sock; as an ordinary user\n"
    "                  $XDG_RUNTIME_DIR/modelstore/modelstore.sock\n"
    "  --version       prints the version\n"
    "\n"
    "Flags win over the file. SIGTERM ends it in order, SIGUSR1 switches the access log.\n";

int Fail(const Status& status) {
  std::fprintf(stderr, "modelstored: %s\n", std::string(status.message()).c_str());
  return StatusCodeExit(status.code());
}

int Main(int argc, char** argv) {
  const Result<DaemonFlags> flags = ParseFlags({argv + 1, argv + argc});
  if (!flags.ok()) return Fail(flags.status());
  if (!flags->probe_gpu.empty()) return ProbeMain(flags->probe_gpu[0], flags->probe_gpu[1]);
  if (flags->help || flags->version) {
    std::fputs(flags->help ? kHelp : "modelstored " MODELSTORE_VERSION "\n", stdout);
    return std::fflush(stdout) == 0 ? 0 : 1;
  }
  const Result<Config> config = LoadConfig(*flags, Environment::OfProcess());
  if (!config.ok()) return Fail(config.status());
  const LogSetup log(config->log_format, config->log_level);
  const Status status = RunService(*config);
  if (!status.ok()) Log(LogLevel::kError, "ended", {{"error", std::string(status.message())}});
  return StatusCodeExit(status.code());
}

}  // namespace
}  // namespace modelstore

int main(int argc, char** argv) {
  modelstore::ReserveStandardStreams();
  modelstore::RaiseDescriptorLimit();
  try {
    return modelstore::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "modelstored: %s\n", e.what());
    return 1;
  }
}
