// Serves the metrics by HTTP to whoever is on this machine (layer: daemon/service).
//
// GET /metrics on a Unix socket or a loopback port, one thread of its own. Nothing else is answered.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "codec/support/status.h"

namespace modelstore {

class MetricsServer {
 public:
  // `address`: a path (anyone who can reach it may connect), "127.0.0.1:PORT" or "[::1]:PORT"; port 0: any free one.
  // `text` is called for each scrape, from any thread. Errors: InvalidArgument (neither, or not a loopback address),
  // Busy (something listens there), PermissionDenied, Io.
  static Result<std::unique_ptr<MetricsServer>> Start(const std::string& address, std::function<std::string()> text);
  ~MetricsServer();  // ends it; a socket's file is removed

  // Where it listens; with the port that was found.
  const std::string& address() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace modelstore
