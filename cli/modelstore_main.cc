// The command line of modelstore (layer: cli).
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "cli/command_line.h"

int main(int argc, char** argv) {
  // A stream that is closed would give its number to a file of the store, and messages would be written into that.
  // Nothing can be written to a stream opened here either: that is an error as before.
  for (int fd = open("/dev/null", O_RDONLY); fd >= 0; fd = open("/dev/null", O_RDONLY)) {
    if (fd <= 2) continue;
    close(fd);
    break;
  }
  // A closed pipe must not end a push in the middle: writes report EPIPE instead.
  signal(SIGPIPE, SIG_IGN);
  // A store and the files of a large model are many descriptors.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return modelstore::RunModelstore(std::vector<std::string>(argv + 1, argv + argc));
}
