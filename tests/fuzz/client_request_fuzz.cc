// What clients say to the daemon: the first byte picks the frame. What parses as a request keeps its promises.
#include <cstdint>
#include <cstdlib>

#include "codec/support/bytes.h"
#include "daemon/service/client_request.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 3) {
    case 0: {
      const auto request = modelstore::ParseClientRequest(text);
      if (!request.ok()) break;
      if (request->request.empty() || !request->parameters.starts_with('{')) std::abort();
      break;
    }
    case 1: {
      const auto files = modelstore::ParseClientFiles(text);
      if (!files.ok()) break;
      for (const auto& file : *files)
        if (file.path.size() > 4096 || file.shown_as.size() > 4096) std::abort();
      break;
    }
    default:
      (void)modelstore::ParseLaterFrame(text).ok();
  }
  return 0;
}
