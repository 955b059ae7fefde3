// The daemon's life: store, socket, mount, signals, systemd (layer: daemon/service).
//
// One thread runs it. SIGTERM, SIGINT, SIGQUIT and SIGXCPU end it: jobs are rolled back, the mount is taken away, the
// store closed. SIGUSR1 switches the access log; SIGHUP and stray signals change nothing.
#pragma once

#include "codec/support/status.h"
#include "daemon/service/config.h"

namespace modelstore {

// Serves until it is told to stop. Called while the process has one thread; blocks the signals above in it. When an
// orderly end takes longer than shutdown_seconds the process ends with exit code 1: the store survives that. Errors:
// as SocketListener::Open, Catalog::Open and Mount::Start; Unavailable (the mount was taken away and cannot come back).
Status RunService(const Config& config);

}  // namespace modelstore
