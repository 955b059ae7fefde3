// By which level of storage a tensor's bytes count (layer: catalog/write; private).
#pragma once

#include "catalog/schema/records.h"
#include "catalog/write/report.h"
#include "codec/decode/frame.h"

namespace modelstore {

// The frame's encoding, without parsing its tables.
inline Encoding EncodingOf(const TensorRecord& record) {
  return record.frame.empty() ? Encoding::kRaw : static_cast<Encoding>(record.frame[0]);
}

// The counter of `levels` for a tensor that is stored for the first time. Headers, padding and plain files have no name
// and are content.
inline uint64_t& LevelOf(LevelBytes& levels, Encoding encoding, bool is_named) {
  if (!is_named) return levels.content;
  switch (encoding) {
    case Encoding::kDelta:
      return levels.delta;
    case Encoding::kRaw:
      return levels.raw;
    case Encoding::kCompact:
      return levels.compact;
    case Encoding::kProjected:
      return levels.projected;
    default:
      return levels.self;
  }
}

inline std::string_view EncodingName(Encoding encoding) {
  switch (encoding) {
    case Encoding::kRaw:
      return "raw";
    case Encoding::kZstd:
      return "zstd";
    case Encoding::kSelf:
      return "self";
    case Encoding::kDelta:
      return "delta";
    case Encoding::kCompact:
      return "compact";
    case Encoding::kProjected:
      return "projected";
  }
  return "unknown";
}

}  // namespace modelstore
