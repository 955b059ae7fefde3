// Signals that nobody sends to a program that serves a mount or writes a store, but that end it by default (layer:
// codec/support). Call before other threads start.
#pragma once

namespace modelstore {

// Ignores SIGXFSZ and SIGPIPE: a write beyond the limit of a file's size (ulimit -f), or into a pipe that nobody reads,
// fails with EFBIG or EPIPE instead.
void IgnoreWriteSignals();

// Ignores the stray ones too (SIGUSR1, SIGUSR2, those of timers, of I/O and of real time): whoever dies of them leaves
// a mount on which every access fails.
void IgnoreStraySignals();

}  // namespace modelstore
