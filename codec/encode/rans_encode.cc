#include "codec/encode/rans_encode.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

#include "codec/encode/symbol_tables.h"
#include "codec/kernels/rans_encode_fast.h"

namespace modelstore {
namespace {

constexpr size_t kDeltaLookup = 256;  // values found by table; larger ones are rare
constexpr unsigned kReciprocalShift = 32 + kProbBits;

EncodeSymbol MakeSymbol(const RansSymbol& s) {
  EncodeSymbol e;
  e.base = s.base;
  e.start = s.start;
  e.freq = s.freq;
  e.raw_bits = s.raw_bits;
  e.first_bits = static_cast<uint8_t>(std::min<unsigned>(s.raw_bits, kFirstRawBits));
  if (s.freq != 0) {
    e.reciprocal = (uint64_t{1} << kReciprocalShift) / s.freq + 1;
    e.limit = static_cast<uint32_t>((uint64_t{s.freq} << (32 - kProbBits - e.first_bits)) - 1);
  }
  return e;
}

}  // namespace

EncodeTables::EncodeTables(const RansModel& model, const DecodeTables& decode_tables)
    : decode_tables_(&decode_tables), delta_(decode_tables.delta) {
  const unsigned width_bits = decode_tables.layout.width_bits;
  cell_shift_ = delta_ ? 0 : SelfCellShift(width_bits);
  // Symbols of tokens begin anywhere: only the lowest values are then found by table.
  for (const RansContext& context : model.contexts) {
    for (const RansSymbol& s : context)
      cell_shift_ = std::min(cell_shift_, static_cast<unsigned>(std::countr_zero(s.base)));
  }
  lookup_size_ = delta_ ? kDeltaLookup : SelfCellCount(width_bits);
  symbols_.emplace_back();  // stands for what cannot be coded
  lookup_.reserve(lookup_size_ * decode_tables.contexts);
  for (const RansContext& context : model.contexts) {
    const uint32_t first = static_cast<uint32_t>(symbols_.size());
    first_symbol_.push_back(first);
    for (const RansSymbol& s : context) symbols_.push_back(MakeSymbol(s));
    const uint32_t end = static_cast<uint32_t>(symbols_.size());
    uint32_t s = first;
    for (size_t key = 0; key < lookup_size_; ++key) {
      const uint64_t value = uint64_t{key} << cell_shift_;
      while (s + 1 < end && value >= symbols_[s + 1].base) ++s;
      bool found = s < end;
      if (found && s + 1 == end && symbols_[s].raw_bits < 64)
        found = value - symbols_[s].base < (uint64_t{1} << symbols_[s].raw_bits);
      lookup_.push_back(static_cast<uint16_t>(found ? s : 0));
    }
  }
  // Contexts without symbols: nothing can be coded there.
  first_symbol_.resize(decode_tables.contexts + 1, static_cast<uint32_t>(symbols_.size()));
  lookup_.resize(lookup_size_ * decode_tables.contexts, 0);
}

const EncodeSymbol& EncodeTables::FindLarge(uint32_t context, uint64_t value) const {
  for (uint32_t s = first_symbol_[context + 1]; s-- > first_symbol_[context];) {
    if (value < symbols_[s].base) continue;
    const bool fits = symbols_[s].raw_bits >= 64 || value - symbols_[s].base < (uint64_t{1} << symbols_[s].raw_bits);
    return symbols_[fits ? s : 0];
  }
  return symbols_[0];
}

namespace {

// Gives the state's low word away when `emit`. In arithmetic, because a branch on it is a coin toss: the word is always
// written, the pointer and the state move only when it counts.
inline std::byte* Emit(uint32_t& x, bool emit, std::byte* p) {
  const uint16_t word = static_cast<uint16_t>(x);
  std::memcpy(p - 2, &word, 2);
  x >>= static_cast<unsigned>(emit) * 16;
  return p - static_cast<unsigned>(emit) * 2;
}

// One group, backwards: later phases first, then the symbols with their first raw bits; lanes in reverse. Words are
// written downwards from `p`; returns the new end. kFull: all 32 lanes have an element.
template <typename U, bool kFull>
std::byte* EncodeGroup(const EncodeSymbol* const* symbols, const U* raws, size_t count, unsigned longest,
                       uint32_t* state, std::byte* p) {
  for (unsigned phase = longest <= kFirstRawBits ? 0 : (longest - kFirstRawBits + 15) / 16; phase-- > 0;) {
    const unsigned shift = kFirstRawBits + 16 * phase;
    for (unsigned lane = kLanes; lane-- > 0;) {
      const unsigned e = LaneElement(lane);
      if ((!kFull && e >= count) || symbols[e]->raw_bits <= shift) continue;
      const unsigned bits = std::min<unsigned>(symbols[e]->raw_bits - shift, 16);
      uint32_t x = state[lane];
      p = Emit(x, (x >> (32 - bits)) != 0, p);
      state[lane] = (x << bits) | (static_cast<uint32_t>(uint64_t{raws[e]} >> shift) & ((1u << bits) - 1));
    }
  }
  for (unsigned lane = kLanes; lane-- > 0;) {
    const unsigned e = LaneElement(lane);
    if (!kFull && e >= count) continue;
    const EncodeSymbol& s = *symbols[e];
    uint32_t x = state[lane];
    p = Emit(x, x > s.limit, p);
    const uint32_t y = (x << s.first_bits) | (static_cast<uint32_t>(raws[e]) & ((1u << s.first_bits) - 1));
    const uint32_t q = static_cast<uint32_t>((uint64_t{y} * s.reciprocal) >> kReciprocalShift);
    state[lane] = (q << kProbBits) + s.start + (y - q * s.freq);
  }
  return p;
}

}  // namespace

// Runs backwards, so that the decoder runs forwards.
template <typename U>
bool EncodeStream(const EncodeTables& tables, const U* values, const uint8_t* contexts, size_t n, size_t max_bytes,
                  Bytes* out, bool* uncodable) {
  constexpr size_t kWorstGroupBytes = 2 * kLanes * (1 + (kWidth<U> + 15) / 16);
  uint32_t state[kLanes];
  std::fill(std::begin(state), std::end(state), kStateLow);
  if (max_bytes < sizeof(state)) return false;
  const size_t capacity = max_bytes - sizeof(state) + kWorstGroupBytes;
  thread_local std::vector<std::byte> scratch;
  if (scratch.size() < capacity) scratch.resize(capacity);
  std::byte* const end = scratch.data() + capacity;
  std::byte* p = end;

  const EncodeSymbol* symbols[kLanes];
  U raws[kLanes];
  for (size_t group = (n + kLanes - 1) / kLanes; group-- > 0;) {
    if constexpr (sizeof(U) == 2) {
      const EncodeFastPath fast = CurrentEncodeFastPath();
      if (fast != nullptr && group < n / kLanes) {
        EncodeJob job{values, contexts, group + 1, state, p, scratch.data()};
        fast(tables.decode_tables(), job);
        *uncodable = job.uncodable;
        if (job.groups > 0) return false;
        p = job.next;
        break;
      }
    }
    const size_t begin = group * kLanes;
    const size_t count = std::min<size_t>(kLanes, n - begin);
    if (static_cast<size_t>(p - scratch.data()) < kWorstGroupBytes) return false;
    unsigned longest = 0;
    bool codable = true;
    for (size_t e = 0; e < count; ++e) {
      const EncodeSymbol& s = tables.Find(contexts[begin + e], values[begin + e]);
      symbols[e] = &s;
      raws[e] = static_cast<U>(values[begin + e] - s.base);
      longest = std::max<unsigned>(longest, s.raw_bits);
      codable &= s.freq != 0;
    }
    if (!codable) {
      *uncodable = true;
      return false;
    }
    p = count == kLanes ? EncodeGroup<U, true>(symbols, raws, count, longest, state, p)
                        : EncodeGroup<U, false>(symbols, raws, count, longest, state, p);
  }
  const size_t words = static_cast<size_t>(end - p);
  if (sizeof(state) + words > max_bytes) return false;
  const std::byte* states = reinterpret_cast<const std::byte*>(state);
  out->insert(out->end(), states, states + sizeof(state));
  out->insert(out->end(), p, end);
  return true;
}

template bool EncodeStream<uint8_t>(const EncodeTables&, const uint8_t*, const uint8_t*, size_t, size_t, Bytes*, bool*);
template bool EncodeStream<uint16_t>(const EncodeTables&, const uint16_t*, const uint8_t*, size_t, size_t, Bytes*,
                                     bool*);
template bool EncodeStream<uint32_t>(const EncodeTables&, const uint32_t*, const uint8_t*, size_t, size_t, Bytes*,
                                     bool*);
template bool EncodeStream<uint64_t>(const EncodeTables&, const uint64_t*, const uint8_t*, size_t, size_t, Bytes*,
                                     bool*);

}  // namespace modelstore
