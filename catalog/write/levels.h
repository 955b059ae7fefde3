// By which level of storage a tensor's bytes count (layer: catalog/write; private).
#pragma once

#include "catalog/write/report.h"
#include "codec/tensor/encoding.h"

namespace modelstore {

// The counter of `levels` for a tensor of an encoding of that number that is stored for the first time. Headers,
// padding and plain files have no name and are content.
inline uint64_t& LevelOf(LevelBytes& levels, uint8_t encoding, bool is_named) {
  if (!is_named) return levels.content;
  const EncodingFacts* const facts = FindEncoding(encoding);
  switch (facts != nullptr ? facts->level : StorageLevel::kSelf) {
    case StorageLevel::kRaw:
      return levels.raw;
    case StorageLevel::kSelf:
      return levels.self;
    case StorageLevel::kDelta:
      return levels.delta;
    case StorageLevel::kCompact:
      return levels.compact;
    case StorageLevel::kProjected:
      return levels.projected;
  }
  return levels.self;
}

}  // namespace modelstore
