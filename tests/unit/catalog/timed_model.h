// A model record of version 4, as the tests of records use it and docs/format.md shows it.
#pragma once

#include "catalog/schema/records.h"

namespace modelstore {

// With a time beyond 64 bits of nanoseconds.
inline ModelRecord TimedModel() {
  ModelFile file{.path = "f", .bytes = 3, .mode = 0440, .mtime_ns = TimeNs{10'413'792'000} * kNsPerSecond + 5};
  file.sha256.fill(std::byte{0x5a});
  file.published_ns = 2;
  ModelRecord model;
  model.id = model.push = 1;
  model.name = "m";
  model.created_ns = 3;
  model.logical_bytes = 3;
  model.pushed_stored_bytes = 4;
  model.files = {file};
  return model;
}

}  // namespace modelstore
