// The command line of modelstore (layer: cli).
#include <signal.h>

#include <string>
#include <vector>

#include "cli/command_line.h"
#include "codec/support/process.h"

int main(int argc, char** argv) {
  modelstore::ReserveStandardStreams();
  // A closed pipe must not end a push in the middle: writes report EPIPE instead.
  signal(SIGPIPE, SIG_IGN);
  modelstore::RaiseDescriptorLimit();
  return modelstore::RunModelstore(std::vector<std::string>(argv + 1, argv + argc));
}
