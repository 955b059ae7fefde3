#include "codec/kernels/rans_decode.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "codec/kernels/rans_encode_fast.h"
#include "codec/kernels/rans_fast.h"

namespace modelstore {
namespace {

// A slot table pays from about this many elements on; fewer are decoded by search.
constexpr size_t kSlotTableMinElems = 8192;

// In a buffer of this thread's, valid until its next call: 128 KiB from the allocator would be mapped afresh for every
// block. A thread that decodes one block of a tensor after the other finds the table as it left it.
const uint64_t* BuildSlotTable(const DecodeTables& t) {
  thread_local std::vector<uint64_t> slots;
  thread_local uint64_t serial = 0;
  if (serial == t.serial) return slots.data();
  slots.resize(size_t{kDeltaContexts} << kProbBits);
  serial = t.serial;  // not before there is memory for it
  for (unsigned c = 0; c < t.contexts; ++c) {
    const uint16_t* start = &t.start[size_t{c} * t.symbols];
    for (unsigned s = 0; s < t.symbols; ++s) {
      const uint32_t begin = start[s];
      const uint32_t end = s + 1 < t.symbols ? start[s + 1] : kProbScale;
      const size_t at = size_t{c} * t.symbols + s;
      const uint32_t high = static_cast<uint16_t>(t.base[at]) | uint32_t{t.raw_bits[at]} << kSlotRawBitsShift;
      uint64_t entry = s | ((end - begin) << kSlotFreqShift) | uint64_t{high} << 32;
      for (uint32_t i = begin; i < end; ++i, entry += 1u << kSlotOffsetShift) slots[(c << kProbBits) + i] = entry;
    }
  }
  return slots.data();
}

struct WordReader {
  const std::byte* next;
  const std::byte* end;
  bool ok = true;
  uint32_t Read() {
    if (end - next < 2) {
      ok = false;
      return 0;
    }
    uint16_t w;
    std::memcpy(&w, next, 2);
    next += 2;
    return w;
  }
};

template <typename U>
U LoadPattern(const std::byte* at, size_t index) {
  U u;
  std::memcpy(&u, at + index * sizeof(U), sizeof(U));
  return u;
}

// The reference, and what finishes after a fast path: group after group, lane by lane, every read checked. False at the
// first missing word.
template <typename U, bool kDeltaStream>
bool DecodeRest(const DecodeTables& t, DecodeJob& job) {
  WordReader words{job.next, job.end};
  U value[kLanes];
  uint8_t rest[kLanes];  // raw bits still to read
  while (job.done < job.elems) {
    const size_t left = job.elems - job.done;
    const bool full = left >= kLanes;
    bool more = false;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned e = LaneElement(lane);
      if (!full && e >= left) continue;
      uint32_t x = job.state[lane];
      uint32_t context;
      if constexpr (kDeltaStream) {
        context = t.ContextOf(LoadPattern<U>(job.prediction, job.done + e));
      } else {
        context = job.classes[(job.done + e) / kSelfChunkElems];
      }
      const uint32_t slot = x & (kProbScale - 1);
      const uint16_t* start = &t.start[size_t{context} * t.symbols];
      const unsigned s = static_cast<unsigned>(std::upper_bound(start, start + t.symbols, slot) - start) - 1;
      const uint32_t end = s + 1 < t.symbols ? start[s + 1] : kProbScale;
      const size_t entry = size_t{context} * t.symbols + s;
      x = (end - start[s]) * (x >> kProbBits) + slot - start[s];
      const unsigned raw = t.raw_bits[entry];
      const unsigned first = std::min(raw, kFirstRawBits);
      value[e] = static_cast<U>(t.base[entry] + (x & ((1u << first) - 1)));
      x >>= first;
      if (x < kStateLow) x = (x << 16) | words.Read();
      job.state[lane] = x;
      rest[e] = static_cast<uint8_t>(raw - first);
      more |= raw > first;
    }
    for (unsigned shift = kFirstRawBits; more; shift += 16) {
      more = false;
      for (unsigned lane = 0; lane < kLanes; ++lane) {
        const unsigned e = LaneElement(lane);
        if ((!full && e >= left) || rest[e] == 0) continue;
        uint32_t x = job.state[lane];
        const unsigned bits = std::min<unsigned>(rest[e], 16);
        value[e] = static_cast<U>(value[e] + (uint64_t{x & ((1u << bits) - 1)} << shift));
        x >>= bits;
        if (x < kStateLow) x = (x << 16) | words.Read();
        job.state[lane] = x;
        rest[e] = static_cast<uint8_t>(rest[e] - bits);
        more |= rest[e] != 0;
      }
    }
    if (!words.ok) return false;
    const size_t n = std::min<size_t>(left, kLanes);
    for (size_t e = 0; e < n; ++e) {
      U pattern;
      if constexpr (kDeltaStream) {
        pattern = FromDeltaValue(value[e], LoadPattern<U>(job.prediction, job.done + e));
      } else {
        pattern = FromSelfValue(value[e], t.low_bit);
      }
      std::memcpy(job.out + (job.done + e) * sizeof(U), &pattern, sizeof(U));
    }
    job.done += n;
  }
  job.next = words.next;
  if (job.next != job.end) return false;
  return std::all_of(job.state, job.state + kLanes, [](uint32_t x) { return x == kStateLow; });
}

template <typename U>
bool DecodeRest(const DecodeTables& t, DecodeJob& job) {
  return t.delta ? DecodeRest<U, true>(t, job) : DecodeRest<U, false>(t, job);
}

// The vector targets know 16-bit patterns; everything else takes the plain path.
const RansFastPath& FastPath(unsigned width_bits) {
  if (width_bits != 16) return kRansPlain;
  switch (CurrentCpuTarget()) {
#if defined(MODELSTORE_X86_KERNELS)
    case CpuTarget::kAvx512:
      return kRansAvx512;
    case CpuTarget::kAvx2:
      return kRansAvx2;
#endif
    default:
      return kRansPlain;
  }
}

// The fast path on the streams as they lie, then, since it keeps away from a stream's end, on a padded copy of each
// end: in a delta a few hundred bytes are a thousand elements. False when a stream ran into the padding.
bool RunFastPath(const RansFastPath& fast, const DecodeTables& tables, const uint64_t* slots, DecodeJob* jobs,
                 unsigned job_count) {
  constexpr unsigned kMaxJobs = 2;
  fast.decode(tables, slots, jobs, job_count);
  std::array<std::byte, 2 * kFastPathSlackBytes> tails[kMaxJobs];
  DecodeJob padded[kMaxJobs];
  size_t left[kMaxJobs];
  for (unsigned j = 0; j < job_count; ++j) {
    left[j] = static_cast<size_t>(jobs[j].end - jobs[j].next);
    padded[j] = jobs[j];
    if (left[j] >= kFastPathSlackBytes) continue;  // stopped for want of elements
    tails[j].fill(std::byte{0});
    if (left[j] != 0) std::memcpy(tails[j].data(), jobs[j].next, left[j]);
    padded[j].next = tails[j].data();
    padded[j].end = tails[j].data() + left[j] + kFastPathSlackBytes;
  }
  fast.decode(tables, slots, padded, job_count);
  for (unsigned j = 0; j < job_count; ++j) {
    if (left[j] >= kFastPathSlackBytes) continue;
    const size_t used = static_cast<size_t>(padded[j].next - tails[j].data());
    if (used > left[j]) return false;
    padded[j].next = jobs[j].next + used;
    padded[j].end = jobs[j].end;
    jobs[j] = padded[j];
  }
  return true;
}

}  // namespace

EncodeFastPath CurrentEncodeFastPath() {
#if defined(MODELSTORE_X86_KERNELS)
  if (CurrentCpuTarget() == CpuTarget::kAvx512) return EncodeGroupsAvx512;
#endif
  return nullptr;
}

DecodeTables BuildDecodeTables(const RansModel& model, bool delta, DType coded_dtype) {
  static std::atomic<uint64_t> last_serial{0};
  DecodeTables t;
  t.serial = ++last_serial;
  t.delta = delta;
  t.symbols = delta ? kDeltaSymbols : kSelfSymbols;
  t.contexts = delta ? kDeltaContexts : kSelfClasses;
  t.low_bit = model.low_bit;
  t.exponent_low = model.exponent_low;
  t.layout = FloatLayoutOf(coded_dtype);
  const size_t n = size_t{t.contexts} * t.symbols;
  t.start.assign(n, kProbScale);
  t.base.assign(n, 0);
  t.raw_bits.assign(n, 0);
  for (unsigned c = 0; c < t.contexts; ++c) {
    const size_t at = size_t{c} * t.symbols;
    t.start[at] = 0;  // a context without symbols decodes as one symbol of value 0
    if (c >= model.contexts.size()) continue;
    const RansContext& symbols = model.contexts[c];
    for (size_t s = 0; s < symbols.size(); ++s) {
      t.start[at + s] = symbols[s].start;
      t.base[at + s] = symbols[s].base;
      t.raw_bits[at + s] = symbols[s].raw_bits;
    }
  }
  return t;
}

bool DecodeStreams(const DecodeTables& tables, DecodeJob* jobs, unsigned job_count) {
  const RansFastPath& fast = FastPath(tables.layout.width_bits);
  size_t elems = 0;
  for (unsigned j = 0; j < job_count; ++j) elems += jobs[j].elems;
  if (!fast.wants_slots) {
    if (!RunFastPath(fast, tables, nullptr, jobs, job_count)) return false;
  } else if (elems >= kSlotTableMinElems) {
    if (!RunFastPath(fast, tables, BuildSlotTable(tables), jobs, job_count)) return false;
  }
  bool ok = true;
  for (unsigned j = 0; j < job_count; ++j) {
    switch (tables.layout.width_bits) {
      case 8:
        ok &= DecodeRest<uint8_t>(tables, jobs[j]);
        break;
      case 16:
        ok &= DecodeRest<uint16_t>(tables, jobs[j]);
        break;
      case 32:
        ok &= DecodeRest<uint32_t>(tables, jobs[j]);
        break;
      case 64:
        ok &= DecodeRest<uint64_t>(tables, jobs[j]);
        break;
      default:
        return false;
    }
  }
  return ok;
}

}  // namespace modelstore
