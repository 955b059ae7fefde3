// From the words of the command line to a command and its arguments (layer: cli; its .cc is the only user of CLI11).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"

namespace modelstore {

struct GlobalOptions {
  // Which door to take, by --store, --socket, MODELSTORE_STORE and MODELSTORE_SOCKET in that order: at most one is set.
  std::string store;   // this process opens the store
  std::string socket;  // a daemon's; "" without a store: looked for where daemons listen
  // How long a daemon may say nothing, by --timeout and MODELSTORE_TIMEOUT; 0: for ever; none: as each request has it.
  std::optional<unsigned> timeout_seconds;
  bool json = false;
  bool quiet = false;
  bool no_color = false;
};

struct Invocation {
  const CommandSpec* command = nullptr;  // null: print `text` and end (help, version)
  GlobalOptions global;
  Arguments arguments;
  std::string text;
};

// `words`: without the program's name. Errors: InvalidArgument (usage).
Result<Invocation> ParseCommandLine(const std::vector<std::string>& words);

// Runs the program: parses, runs, prints. Returns the exit code.
int RunModelstore(const std::vector<std::string>& words);

}  // namespace modelstore
