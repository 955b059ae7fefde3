#include "cli/commands.h"

#include <vector>

namespace modelstore {

std::span<const CommandSpec> Commands() {
  static const std::vector<CommandSpec> kCommands = {
      PushCommand(),   LsCommand(),   ShowCommand(),  ReportCommand(),  VerifyCommand(), ExportCommand(),
      RenameCommand(), RmCommand(),   PruneCommand(), CompactCommand(), DeriveCommand(), StatusCommand(),
      DoctorCommand(), WarmCommand(), MountCommand(), UnmountCommand()};
  return kCommands;
}

}  // namespace modelstore
