// BlockCache: decoded blocks, who is decoding one right now, and the budget for both (layer: catalog/read; private).
//
// Thread-safe. One mutex guards the maps, the lists and the ledger; it is never held while something is decoded, read,
// copied or freed.
//
// The budget is kept by reservations. An operation reserves the most it will ever hold at once, waits for that in
// order of arrival, and never waits for memory again; so whoever is decoding can always finish, and waiting for
// somebody else's decode cannot deadlock as long as blocks wait only for blocks of a smaller depth. A block that stays
// longer than the operation that made it (cached, or handed to a caller) is charged to the ledger for itself until the
// last one lets go of it. Blocks that are not charged are held only by operations whose reservations cover them.
//
// A place in the queue for memory (Ledger::Ticket), a reservation and a decode that others wait for (Flight) end in
// destructors: whatever fails or throws in between, nobody waits for ever. Evicting, finishing and giving back take no
// memory, because they are wanted most when there is none.
//
// Eviction: LRU lists. A block enters `recent`; it moves to `proven` (at most 3/4 of the capacity) when it is used
// again after the cache has taken in a sixteenth of its capacity, so that one long scan cannot push out what is reused.
// Two kinds do not stay, because touching fresh memory for them costs half as much as decoding them (measured), and
// memory that was just used costs nothing. A block that a reader was given completely and that predicts no other is
// forgotten at once: what was read is with the reader (the kernel's page cache). A block that was decoded for a
// prediction is only `tried`, in kMaxTriedBytes; when it had to go and is wanted again, its base is hot,
// and it enters `recent`.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "catalog/read/block_memory.h"
#include "catalog/read/tensor_geometry.h"
#include "codec/support/bytes.h"
#include "codec/support/mutex.h"
#include "codec/support/status.h"

namespace modelstore {

struct Ledger {
  // `spare`: bytes of free slots that are kept, which the capacity does not cover.
  explicit Ledger(uint64_t capacity, uint64_t spare = 0) : memory(spare), capacity_bytes(capacity) {}

  BlockMemory memory;
  const uint64_t capacity_bytes;
  Mutex mutex;
  CondVar released;
  uint64_t used_bytes MS_GUARDED_BY(mutex) = 0;  // reservations and charged blocks
  uint64_t peak_bytes MS_GUARDED_BY(mutex) = 0;

  // A place in the queue of those who wait for bytes, in order of arrival; left when it ends. Made, asked and ended
  // under the mutex, which the analysis knows by another name there.
  class Ticket {
   public:
    explicit Ticket(Ledger& ledger) MS_REQUIRES(ledger.mutex) : ledger_(ledger), before_(ledger.last_) {
      (before_ == nullptr ? ledger_.first_ : before_->behind_) = this;
      ledger_.last_ = this;
    }
    ~Ticket() MS_NO_THREAD_SAFETY_ANALYSIS {
      (before_ == nullptr ? ledger_.first_ : before_->behind_) = behind_;
      (behind_ == nullptr ? ledger_.last_ : behind_->before_) = before_;
      if (ledger_.first_ != nullptr) ledger_.released.NotifyAll();
    }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    bool is_first() const MS_NO_THREAD_SAFETY_ANALYSIS { return ledger_.first_ == this; }

   private:
    Ledger& ledger_;
    Ticket* before_;
    Ticket* behind_ = nullptr;
  };

  bool has_queue() const MS_REQUIRES(mutex) { return first_ != nullptr; }
  bool Fits(uint64_t bytes) const MS_REQUIRES(mutex) { return bytes <= capacity_bytes - used_bytes; }
  void Take(uint64_t bytes) MS_REQUIRES(mutex) {
    used_bytes += bytes;
    if (used_bytes > peak_bytes) peak_bytes = used_bytes;
  }
  void Give(uint64_t bytes) MS_REQUIRES(mutex) {
    used_bytes -= bytes;
    if (has_queue()) released.NotifyAll();
  }

 private:
  Ticket* first_ MS_GUARDED_BY(mutex) = nullptr;
  Ticket* last_ MS_GUARDED_BY(mutex) = nullptr;
};

class Block {
 public:
  // Uninitialised bytes, not charged. Null when the system has no memory.
  static std::shared_ptr<Block> Create(std::shared_ptr<Ledger> ledger, size_t bytes) noexcept;
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  ByteSpan bytes() const { return {data_, size_}; }
  MutableByteSpan mutable_bytes() { return {data_, size_}; }
  uint64_t taken_bytes() const { return BlockMemory::TakenBytes(size_); }

 private:
  friend class BlockCache;
  Block(std::shared_ptr<Ledger> ledger, std::byte* data, size_t size)
      : ledger_(std::move(ledger)), data_(data), size_(size) {}

  const std::shared_ptr<Ledger> ledger_;
  std::byte* const data_;
  const size_t size_;
  bool charged_ = false;  // guarded by the ledger's mutex while shared
};
using BlockPtr = std::shared_ptr<Block>;

class BlockCache {
  struct Landing;  // what a decode's end tells those who wait for it

 public:
  enum class Use : uint8_t {
    kRead,
    kPredict,
    kPrefetch,
  };
  struct Stats {
    uint64_t cached_bytes = 0, capacity_bytes = 0, peak_bytes = 0;
    uint64_t hits = 0, misses = 0, waits = 0, prefetched = 0;
  };

  // Bytes that one operation may hold; given back when it ends.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept
        : ledger_(std::exchange(other.ledger_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Reservation& operator=(Reservation&&) = delete;
    ~Reservation();
    explicit operator bool() const { return ledger_ != nullptr; }

   private:
    friend class BlockCache;
    Reservation(Ledger* ledger, uint64_t bytes) : ledger_(ledger), bytes_(bytes) {}
    Ledger* ledger_ = nullptr;
    uint64_t bytes_ = 0;
  };

  // A decode under way, held by who decodes. Finish ends it; when it ends without, those who wait get OutOfMemory: only
  // an exception leads there. The cache outlives it.
  class Flight {
   public:
    Flight() = default;  // none
    Flight(Flight&& other) noexcept
        : cache_(std::exchange(other.cache_, nullptr)), landing_(std::move(other.landing_)) {}
    Flight& operator=(Flight&& other) noexcept {
      std::swap(cache_, other.cache_);
      std::swap(landing_, other.landing_);
      return *this;
    }
    ~Flight();
    explicit operator bool() const { return landing_ != nullptr; }

   private:
    friend class BlockCache;
    Flight(BlockCache* cache, std::shared_ptr<Landing> landing) : cache_(cache), landing_(std::move(landing)) {}
    BlockCache* cache_ = nullptr;
    std::shared_ptr<Landing> landing_;
  };

  // Holds at most both together: blocks and reservations of `capacity_bytes`, and free slots of `spare_bytes`.
  explicit BlockCache(uint64_t capacity_bytes, uint64_t spare_bytes = 0);
  ~BlockCache();

  const std::shared_ptr<Ledger>& ledger() const { return ledger_; }
  // Takes `bytes`, evicting blocks that nobody uses first, and waits for them (wait = false: gives up, with an empty
  // reservation). Errors: ResourceExhausted when they exceed the capacity.
  Result<Reservation> Reserve(uint64_t bytes, bool wait = true);
  // For prefetching `block_bytes`: never waits, evicts no prefetched block that is still to be read, and refuses when
  // those would exceed a quarter of the capacity. What was prefetched long ago will not be read and goes. False when
  // refused.
  Reservation TryReserve(uint64_t bytes, uint64_t block_bytes);

  // The cached block, or null.
  BlockPtr Find(const BlockId& id, Use use);
  struct ReadPart {
    BlockId id;
    uint64_t bytes;
  };
  // A reader has got these parts and keeps them.
  void Pass(std::span<const ReadPart> parts);
  // Cached or being decoded?
  bool Contains(const BlockId& id) const;
  // The block: cached, or from the decode that somebody else has under way (then also that decode's error). Null when
  // the caller is the first: it then has the flight `*mine`, decodes the block and calls Finish. `own`: the caller's
  // reservation when the block is what it came for (it is charged from there and `own` shrinks to it); null for a base
  // block on the way.
  Result<BlockPtr> Join(const BlockId& id, Use use, Reservation* own, uint64_t block_bytes, Flight* mine);
  // Publishes a decode to all who wait, and caches the block. A base block is cached only when the budget has room.
  void Finish(Flight flight, const Result<BlockPtr>& result, Use use, Reservation* own) noexcept;
  // Charges a block that is handed out from the reservation that covered it.
  void Charge(const BlockPtr& block, Reservation& own);

  void Clear();
  Stats stats() const;

 private:
  struct Slot {
    BlockId id;
    BlockPtr block;                    // null while being decoded
    std::shared_ptr<Landing> landing;  // null when decoded
    std::list<Slot>* list = nullptr;
    bool predicts = false;  // was used as a base
    uint64_t passed_bytes = 0;
    uint64_t inserted_before = 0;  // inserted_bytes_ when it came in
  };
  using List = std::list<Slot>;
  using Position = List::iterator;
  struct IdHash {
    size_t operator()(const BlockId& id) const {
      const uint64_t tensor = id.tensor.hash.low + id.tensor.ordinal + id.push;
      return static_cast<size_t>((tensor * 0x9E3779B97F4A7C15ull ^ id.index) * 0xD6E8FEB86659FD93ull >> 16);
    }
  };
  using Garbage = List;  // slots whose blocks are freed outside the lock

  // Evicts, but never waits.
  Reservation TakeNow(uint64_t bytes, bool spare_only, uint64_t max_ahead_bytes);
  void Touch(Position slot, Use use) MS_REQUIRES(ledger_->mutex);
  void Insert(Position slot, const BlockPtr& block, Use use, Garbage& garbage) MS_REQUIRES(ledger_->mutex);
  uint64_t* BytesOf(const List* list) MS_REQUIRES(ledger_->mutex);     // null: not counted
  void MoveTo(List& list, Position slot) MS_REQUIRES(ledger_->mutex);  // its front
  void Unlink(Position slot, Garbage& garbage) noexcept MS_REQUIRES(ledger_->mutex);
  // Prefetched so long ago that it will not be read.
  bool IsForgotten(const Slot& slot) const MS_REQUIRES(ledger_->mutex);
  // Enough for the blocks of a delta that share a base block, and little enough to stay in the CPU's cache.
  static constexpr uint64_t kMaxTriedBytes = 4ull << 20;
  // Where the number of a tried block is remembered after it had to go.
  uint64_t& Memory(uint64_t number) MS_REQUIRES(ledger_->mutex) { return gone_[number % gone_.size()]; }
  // Moves the least useful blocks that nobody holds to `garbage`, until they will give `bytes` back. False, and nothing
  // moved, when they cannot. `spare_only`: spares proven blocks and prefetched ones that are still to be read.
  bool Evict(uint64_t bytes, bool spare_only, Garbage& garbage) noexcept MS_REQUIRES(ledger_->mutex);
  // Bytes that Evict would free; stops at `bytes`. With `garbage`: moves them there.
  uint64_t FreeUnused(uint64_t bytes, bool spare_only, Garbage* garbage) noexcept MS_REQUIRES(ledger_->mutex);
  // Forgets the blocks that somebody holds, so that they give their bytes back, and wake who waits, when let go of.
  void ForgetHeld(Garbage& garbage) noexcept MS_REQUIRES(ledger_->mutex);
  void ChargeLocked(Block& block, Reservation& own) MS_REQUIRES(ledger_->mutex);

  const std::shared_ptr<Ledger> ledger_;
  std::unordered_map<BlockId, Position, IdHash> slots_ MS_GUARDED_BY(ledger_->mutex);
  List flights_ MS_GUARDED_BY(ledger_->mutex);
  // The next to be evicted is at the back. ahead_: prefetched and still to be read.
  List tried_ MS_GUARDED_BY(ledger_->mutex), recent_ MS_GUARDED_BY(ledger_->mutex);
  List ahead_ MS_GUARDED_BY(ledger_->mutex), proven_ MS_GUARDED_BY(ledger_->mutex);
  uint64_t cached_bytes_ MS_GUARDED_BY(ledger_->mutex) = 0, tried_bytes_ MS_GUARDED_BY(ledger_->mutex) = 0;
  uint64_t ahead_bytes_ MS_GUARDED_BY(ledger_->mutex) = 0, proven_bytes_ MS_GUARDED_BY(ledger_->mutex) = 0;
  uint64_t inserted_bytes_ MS_GUARDED_BY(ledger_->mutex) = 0;
  std::vector<uint64_t> gone_ MS_GUARDED_BY(ledger_->mutex);
  Stats counts_ MS_GUARDED_BY(ledger_->mutex);
};

}  // namespace modelstore
