#include "catalog/read/access_pattern.h"

#include <algorithm>

namespace modelstore {
namespace {

// Requests of one reader arrive at most this far out of order: a kernel read-ahead window of 8 MiB.
constexpr uint64_t kSlackBytes = 8ull << 20;
// A longer stretch is shortened from its start, so that only the recent past counts.
constexpr uint64_t kMemoryBytes = 64ull << 20;
constexpr uint64_t kMinRunBytes = 128ull << 10;
constexpr uint64_t kAdviceStepBytes = 256ull << 10;

uint64_t Distance(uint64_t a, uint64_t b) { return a > b ? a - b : b - a; }

}  // namespace

AccessPattern::Advice AccessPattern::Note(uint64_t offset, uint64_t bytes, uint64_t max_ahead_bytes,
                                          uint64_t step_bytes) {
  const uint64_t end = offset + bytes;
  const MutexLock lock(mutex_);
  Stream* stream = nullptr;
  Stream* oldest = &streams_[0];
  for (Stream& s : streams_) {
    if (s.last_use < oldest->last_use) oldest = &s;
    if (s.last_use == 0 || Distance(offset, s.end) > kSlackBytes) continue;
    if (stream == nullptr || Distance(offset, s.end) < Distance(offset, stream->end)) stream = &s;
  }
  if (stream == nullptr) {
    *oldest = Stream{offset, end, bytes, end, ++clock_};
    return {};
  }
  Stream& s = *stream;
  s.last_use = ++clock_;
  s.begin = std::min(s.begin, offset);
  s.end = std::max(s.end, end);
  s.read_bytes = std::min(s.read_bytes + bytes, s.end - s.begin);
  if (s.end - s.begin > kMemoryBytes) {
    s.begin += (s.end - s.begin) / 2;
    s.read_bytes /= 2;
  }
  const uint64_t span = s.end - s.begin;
  Advice advice;
  advice.sequential = span >= kMinRunBytes && s.read_bytes >= span / 2;
  if (!advice.sequential) return advice;
  const uint64_t step = step_bytes != 0 && span >= step_bytes ? step_bytes : kAdviceStepBytes;
  const uint64_t want = (s.end + std::min(max_ahead_bytes, span)) / step * step;
  const uint64_t from = std::max(s.end, s.advised_end);
  if (want <= from) return advice;
  advice.prefetch_begin = from;
  advice.prefetch_end = s.advised_end = want;
  return advice;
}

bool AccessPattern::IsAhead(uint64_t begin, uint64_t end) const {
  const MutexLock lock(mutex_);
  return std::any_of(streams_.begin(), streams_.end(),
                     [&](const Stream& s) { return s.last_use != 0 && s.end < end && begin < s.advised_end; });
}

}  // namespace modelstore
