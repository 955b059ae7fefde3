// The command line of modelstore (layer: cli).
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "codec/support/process.h"
#include "codec/support/signals.h"

int main(int argc, char** argv) {
  modelstore::ReserveStandardStreams();
  // Neither a closed pipe nor a limit of files' sizes may end a push in the middle: writes report the error instead.
  modelstore::IgnoreWriteSignals();
  modelstore::RaiseDescriptorLimit();
  return modelstore::RunModelstore(std::vector<std::string>(argv + 1, argv + argc));
}
