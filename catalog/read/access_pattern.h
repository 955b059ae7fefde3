// AccessPattern: recognises sequential readers of one file (layer: catalog/read).
//
// A stream is a stretch of the file of which at least half has been asked for. So it does not matter in which order the
// kernel's read-ahead delivers a reader's requests, and random reads, which leave most of what they span unread, never
// look sequential. Several streams per file. Thread-safe; a few comparisons under a short lock.
#pragma once

#include <array>
#include <cstdint>

#include "codec/support/mutex.h"

namespace modelstore {

class AccessPattern {
 public:
  struct Advice {
    bool sequential = false;
    uint64_t prefetch_begin = 0, prefetch_end = 0;  // what to prefetch now; empty when equal
  };

  // Notes a read of [offset, offset + bytes). Advises at most `max_ahead_bytes` beyond the stream's end, and no more
  // than the stream is long, so that a short burst costs little; every byte is advised once a stream. Once the stream
  // is as long as `step_bytes` (0: there is no such step), so many at a time.
  Advice Note(uint64_t offset, uint64_t bytes, uint64_t max_ahead_bytes, uint64_t step_bytes = 0);
  // Is [begin, end) still ahead of a stream that was advised to prefetch it?
  bool IsAhead(uint64_t begin, uint64_t end) const;

 private:
  struct Stream {
    uint64_t begin = 0, end = 0;  // the stretch
    uint64_t read_bytes = 0;      // asked for within it
    uint64_t advised_end = 0;
    uint64_t last_use = 0;  // 0: free
  };

  mutable Mutex mutex_;
  uint64_t clock_ MS_GUARDED_BY(mutex_) = 0;
  std::array<Stream, 8> streams_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
