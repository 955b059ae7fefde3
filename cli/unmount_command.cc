#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "codec/json/json_text.h"
#include "fuse/mount.h"

namespace modelstore {
namespace {

Result<Outcome> RunUnmount(Session& session, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::string mountpoint, AbsolutePath(arguments.positionals[0]));
  RETURN_IF_ERROR(Unmount(mountpoint));
  Outcome out;
  nlohmann::json document;
  document["unmounted"] = mountpoint;
  out.document = JsonText(document);
  if (!session.options().quiet) out.text = "unmounted " + Printable(mountpoint) + "\n";
  return out;
}

}  // namespace

CommandSpec UnmountCommand() {
  return {.name = "unmount",
          .summary = "end a mount",
          .positionals = {{"DIR", "the folder given to mount"}},
          .options = {},
          .run = RunUnmount};
}

}  // namespace modelstore
