#include "codec/support/signals.h"

#include <signal.h>

#include <initializer_list>

namespace modelstore {

void IgnoreWriteSignals() {
  for (const int number : {SIGXFSZ, SIGPIPE}) signal(number, SIG_IGN);
}

void IgnoreStraySignals() {
  IgnoreWriteSignals();
  for (const int number : {SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT})
    signal(number, SIG_IGN);
  for (int number = SIGRTMIN; number <= SIGRTMAX; ++number) signal(number, SIG_IGN);
}

}  // namespace modelstore
