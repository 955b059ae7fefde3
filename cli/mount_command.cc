#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "codec/json/json_text.h"
#include "codec/support/signals.h"
#include "fuse/mount.h"

namespace modelstore {
namespace {

using Json = nlohmann::ordered_json;

// What a signal stops. A signal that comes before the mount stands is remembered.
struct MountStop {
  std::atomic<Mount*> mount{nullptr};
  std::atomic<bool> requested{false};
};

void RequestStop(void* argument) {
  auto* stop = static_cast<MountStop*>(argument);
  stop->requested = true;
  if (Mount* const mount = stop->mount.load()) mount->RequestStop();
}

Result<Outcome> RunMount(Session& session, const Arguments& arguments) {
  constexpr uint64_t kMaxReadAheadKb = 1 << 20;
  MountOptions options;
  RETURN_IF_ERROR(session.UseMemoryBudget(arguments));
  if (arguments.values.contains("--read-ahead-kb")) {
    Result<uint64_t> kb = ParseCount(arguments.Value("--read-ahead-kb"), 4, kMaxReadAheadKb);
    if (!kb.ok()) return kb.status().WithContext("--read-ahead-kb");
    options.read_ahead_kb = static_cast<uint32_t>(*kb);
  }
  ASSIGN_OR_RETURN(options.mountpoint, AbsolutePath(arguments.positionals[0]));
  options.allow_other = geteuid() == 0;

  IgnoreStraySignals();
  MountStop stop;
  const InterruptScope interrupt(RequestStop, &stop, /*second_exits=*/false);
  ASSIGN_OR_RETURN(Catalog* const catalog, session.OpenToServe());
  ASSIGN_OR_RETURN(const std::unique_ptr<Mount> mount, Mount::Start(*catalog, options));
  stop.mount = mount.get();
  if (stop.requested) mount->RequestStop();

  const MountState state = mount->state();
  if (session.options().json) {
    Json ready;
    ready["mount"] = state.mountpoint;
    ready["read_ahead_kb"] = state.read_ahead_kb;
    // Printed at once: whoever started this waits for it.
    WriteAll(STDOUT_FILENO, JsonText(ready, JsonStyle::kAsciiLine) + "\n");
  }
  session.Say("mounted " + Printable(session.options().store) + " at " + Printable(state.mountpoint) + " (read-ahead " +
              std::to_string(state.read_ahead_kb) + " KiB), Ctrl-C to unmount");
  mount->Wait();
  const Status stopped = mount->Stop();
  stop.mount = nullptr;
  RETURN_IF_ERROR(stopped);
  session.Say("unmounted " + Printable(state.mountpoint));
  return Outcome{};
}

}  // namespace

CommandSpec MountCommand() {
  return {.name = "mount",
          .summary = "show the models as files below DIR until Ctrl-C",
          .positionals = {{"DIR", "an empty folder (created when missing)"}},
          .options = {{"--read-ahead-kb", "N", "the kernel's read-ahead (default 8192; set by root only)"},
                      kMemoryBudgetOption},
          .run = RunMount};
}

}  // namespace modelstore
