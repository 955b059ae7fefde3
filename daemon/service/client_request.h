// What a client says, parsed (layer: daemon/service). The bytes come from anyone. Values; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

struct ClientRequest {
  std::string version;     // of the client's program
  std::string request;     // "push", …
  std::string parameters;  // JSON object
  std::string model;       // the model it is about, when the parameters name one: for logs and `status`
  uint64_t files = 0;      // of a push: that follow
  bool moments = false;    // then a file of moments
};
// Errors: Unsupported (another protocol: names both), InvalidArgument.
Result<ClientRequest> ParseClientRequest(std::string_view json);

struct ClientFile {
  std::string path;
  std::string shown_as;  // for messages only: cut when it is long
  uint32_t mode = 0;     // what the folders that lead to it let the group and others do; 0: nothing
};
// One frame of a push's files. Errors: Cancelled (the client's `cancel` in its place), InvalidArgument.
Result<std::vector<ClientFile>> ParseClientFiles(std::string_view json);

// What comes after a request: an answer to `open`, which is OK when a descriptor goes with it, else why there is none.
// Errors: Cancelled (the client's `cancel`), InvalidArgument.
struct LaterFrame {
  Status not_opened;
};
Result<LaterFrame> ParseLaterFrame(std::string_view json);

}  // namespace modelstore
