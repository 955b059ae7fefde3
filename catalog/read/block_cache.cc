#include "catalog/read/block_cache.h"

#include <algorithm>
#include <new>
#include <string>

#include "codec/support/guarded.h"

namespace modelstore {

// All but `id` is guarded by the ledger's mutex.
struct BlockCache::Landing {
  BlockId id;
  CondVar done_changed;
  bool done = false;
  Result<BlockPtr> result = BlockPtr();
};

std::shared_ptr<Block> Block::Create(std::shared_ptr<Ledger> ledger, size_t bytes) noexcept {
  BlockMemory& memory = ledger->memory;
  std::byte* const data = memory.Allocate(bytes);
  if (data == nullptr) return nullptr;
  Block* const block = new (std::nothrow) Block(std::move(ledger), data, bytes);
  if (block == nullptr) memory.Free(data, bytes);
  try {
    return std::shared_ptr<Block>(block);
  } catch (const std::bad_alloc&) {
    return nullptr;  // the constructor that failed deleted the block
  }
}

Block::~Block() {
  ledger_->memory.Free(data_, size_);  // before others count on the bytes
  if (!charged_) return;
  const MutexLock lock(ledger_->mutex);
  ledger_->Give(taken_bytes());
}

BlockCache::Reservation::~Reservation() {
  if (ledger_ == nullptr || bytes_ == 0) return;
  const MutexLock lock(ledger_->mutex);
  ledger_->Give(bytes_);
}

// As many are remembered as the cache could hold, if they were a quarter of the usual size.
BlockCache::BlockCache(uint64_t capacity_bytes, uint64_t spare_bytes)
    : ledger_(std::make_shared<Ledger>(capacity_bytes, spare_bytes)),
      gone_(1 + capacity_bytes / (BlockMemory::kSlotBytes / 4)) {}

BlockCache::~BlockCache() { Clear(); }

Result<BlockCache::Reservation> BlockCache::Reserve(uint64_t bytes, bool wait) {
  if (bytes > ledger_->capacity_bytes) {
    return ResourceExhausted("decoding a block needs " + std::to_string(bytes) +
                             " bytes of memory, the read cache has " + std::to_string(ledger_->capacity_bytes) +
                             "; give the store a larger memory budget");
  }
  if (!wait) return TakeNow(bytes, false, UINT64_MAX);
  Garbage garbage;
  MutexLock lock(ledger_->mutex);
  const Ledger::Ticket ticket(*ledger_);
  while (true) {
    if (ticket.is_first()) {
      if (ledger_->Fits(bytes)) break;
      if (!Evict(bytes - (ledger_->capacity_bytes - ledger_->used_bytes), false, garbage)) ForgetHeld(garbage);
      if (!garbage.empty()) {
        lock.Unlock();
        garbage.clear();
        lock.Lock();
        continue;
      }
    }
    ledger_->released.Wait(ledger_->mutex);
  }
  ledger_->Take(bytes);
  return Reservation(ledger_.get(), bytes);
}

BlockCache::Reservation BlockCache::TryReserve(uint64_t bytes, uint64_t block_bytes) {
  const uint64_t share = ledger_->capacity_bytes / 4;
  return block_bytes > share ? Reservation() : TakeNow(bytes, true, share - block_bytes);
}

bool BlockCache::IsForgotten(const Slot& slot) const {
  return inserted_bytes_ - slot.inserted_before > ledger_->capacity_bytes / 2 && slot.block.use_count() == 1;
}

BlockCache::Reservation BlockCache::TakeNow(uint64_t bytes, bool spare_only, uint64_t max_ahead_bytes) {
  Garbage garbage;
  MutexLock lock(ledger_->mutex);
  while (ahead_bytes_ > max_ahead_bytes && IsForgotten(ahead_.back())) Unlink(std::prev(ahead_.end()), garbage);
  if (bytes > ledger_->capacity_bytes || ahead_bytes_ > max_ahead_bytes) return {};
  if (!ledger_->Fits(bytes)) {
    const uint64_t missing = bytes - (ledger_->capacity_bytes - ledger_->used_bytes);
    if (ledger_->has_queue() || !Evict(missing, spare_only, garbage)) return {};
    lock.Unlock();
    garbage.clear();
    lock.Lock();
  }
  if (ledger_->has_queue() || !ledger_->Fits(bytes)) return {};
  ledger_->Take(bytes);
  return Reservation(ledger_.get(), bytes);
}

BlockPtr BlockCache::Find(const BlockId& id, Use use) {
  const MutexLock lock(ledger_->mutex);
  const auto it = slots_.find(id);
  if (it == slots_.end() || it->second->block == nullptr) return nullptr;
  ++counts_.hits;
  Touch(it->second, use);
  return it->second->block;
}

void BlockCache::Pass(std::span<const ReadPart> parts) {
  Garbage garbage;
  const MutexLock lock(ledger_->mutex);
  for (const ReadPart& part : parts) {
    const auto it = slots_.find(part.id);
    if (it == slots_.end() || it->second->block == nullptr) continue;
    const List::iterator slot = it->second;
    slot->passed_bytes += part.bytes;
    if (slot->passed_bytes >= slot->block->bytes().size() && slot->list != &proven_ && !slot->predicts)
      Unlink(slot, garbage);
  }
}

bool BlockCache::Contains(const BlockId& id) const {
  const MutexLock lock(ledger_->mutex);
  return slots_.contains(id);
}

Result<BlockPtr> BlockCache::Join(const BlockId& id, Use use, Reservation* own, uint64_t block_bytes, Flight* mine) {
  MutexLock lock(ledger_->mutex);
  const auto it = slots_.find(id);
  if (it == slots_.end()) {
    auto landing = std::make_shared<Landing>();
    landing->id = id;
    List made;
    made.push_front(Slot{.id = id, .block = nullptr, .landing = landing, .list = &flights_});
    slots_.emplace(id, made.begin());
    flights_.splice(flights_.begin(), made);  // from here on nothing fails
    if (use != Use::kPrefetch) ++counts_.misses;
    *mine = Flight(this, std::move(landing));
    return BlockPtr();
  }
  if (it->second->block != nullptr) {
    ++counts_.hits;
    Touch(it->second, use);
    return it->second->block;
  }
  ++counts_.waits;
  const std::shared_ptr<Landing> landing = it->second->landing;
  if (own != nullptr && own->bytes_ > block_bytes) {
    ledger_->Give(own->bytes_ - block_bytes);
    own->bytes_ = block_bytes;
  }
  while (!landing->done) landing->done_changed.Wait(ledger_->mutex);
  if (landing->result.ok() && own != nullptr) ChargeLocked(**landing->result, *own);
  return landing->result;
}

BlockCache::Flight::~Flight() {
  if (landing_ != nullptr) cache_->Finish(std::move(*this), OutOfMemory(), Use::kRead, nullptr);
}

void BlockCache::Finish(Flight flight, const Result<BlockPtr>& result, Use use, Reservation* own) noexcept {
  const std::shared_ptr<Landing> landing = std::move(flight.landing_);
  Garbage garbage;
  MutexLock lock(ledger_->mutex);
  bool keep = false;
  if (result.ok()) {
    Block& block = **result;
    if (own != nullptr) {
      ChargeLocked(block, *own);
      keep = block.charged_;
    } else {
      if (!ledger_->Fits(block.taken_bytes()) && !ledger_->has_queue()) {
        const uint64_t missing = block.taken_bytes() - (ledger_->capacity_bytes - ledger_->used_bytes);
        if (Evict(missing, true, garbage)) {
          lock.Unlock();
          garbage.clear();
          lock.Lock();
        }
      }
      if (ledger_->Fits(block.taken_bytes())) {
        ledger_->Take(block.taken_bytes());
        block.charged_ = true;
        keep = true;
      }
    }
  }
  const auto it = slots_.find(landing->id);
  if (keep) {
    Insert(it->second, *result, use, garbage);
  } else {
    flights_.erase(it->second);
    slots_.erase(it);
  }
  landing->result = result;
  landing->done = true;
  landing->done_changed.NotifyAll();
}

void BlockCache::Charge(const BlockPtr& block, Reservation& own) {
  const MutexLock lock(ledger_->mutex);
  ChargeLocked(*block, own);
}

void BlockCache::ChargeLocked(Block& block, Reservation& own) {
  if (block.charged_ || own.bytes_ < block.taken_bytes()) return;
  block.charged_ = true;
  own.bytes_ -= block.taken_bytes();
}

uint64_t* BlockCache::BytesOf(const List* list) {
  return list == &tried_    ? &tried_bytes_
         : list == &ahead_  ? &ahead_bytes_
         : list == &proven_ ? &proven_bytes_
                            : nullptr;
}

void BlockCache::MoveTo(List& list, Position slot) {
  const uint64_t bytes = slot->block->taken_bytes();
  if (uint64_t* const from = BytesOf(slot->list)) *from -= bytes;
  if (uint64_t* const to = BytesOf(&list)) *to += bytes;
  list.splice(list.begin(), *slot->list, slot);
  slot->list = &list;
}

void BlockCache::Touch(Position slot, Use use) {
  if (use == Use::kPrefetch) return;
  slot->predicts |= use == Use::kPredict;
  if (slot->list == &ahead_) {
    slot->inserted_before = inserted_bytes_;
    MoveTo(recent_, slot);
    return;
  }
  if (slot->list == &recent_ && inserted_bytes_ - slot->inserted_before > ledger_->capacity_bytes / 16) {
    MoveTo(proven_, slot);
    while (proven_bytes_ > ledger_->capacity_bytes / 4 * 3) {
      const Position last = std::prev(proven_.end());
      last->inserted_before = inserted_bytes_;
      MoveTo(recent_, last);
    }
    return;
  }
  MoveTo(*slot->list, slot);
}

void BlockCache::Insert(Position slot, const BlockPtr& block, Use use, Garbage& garbage) {
  slot->block = block;
  slot->landing = nullptr;
  slot->predicts = use == Use::kPredict;
  slot->inserted_before = inserted_bytes_;
  inserted_bytes_ += block->taken_bytes();
  cached_bytes_ += block->taken_bytes();
  if (use == Use::kPrefetch) {
    ++counts_.prefetched;
    MoveTo(ahead_, slot);
    return;
  }
  const uint64_t number = IdHash()(slot->id);
  if (use != Use::kPredict || Memory(number) == number) {
    MoveTo(recent_, slot);
    return;
  }
  MoveTo(tried_, slot);
  const uint64_t max_tried_bytes = std::min(ledger_->capacity_bytes / 16, kMaxTriedBytes);
  for (auto it = tried_.end(); it != tried_.begin() && tried_bytes_ > max_tried_bytes;) {
    const Position last = --it;
    if (last->block.use_count() > 1) continue;  // it goes next time
    ++it;
    const uint64_t gone = IdHash()(last->id);
    Memory(gone) = gone;
    Unlink(last, garbage);
  }
}

void BlockCache::Unlink(Position slot, Garbage& garbage) noexcept {
  const uint64_t bytes = slot->block->taken_bytes();
  cached_bytes_ -= bytes;
  if (uint64_t* const of_list = BytesOf(slot->list)) *of_list -= bytes;
  slots_.erase(slot->id);
  garbage.splice(garbage.begin(), *slot->list, slot);
}

bool BlockCache::Evict(uint64_t bytes, bool spare_only, Garbage& garbage) noexcept {
  // Only this cache hands out references, under the lock, so a block that nobody holds now stays so.
  if (FreeUnused(bytes, spare_only, nullptr) < bytes) return false;
  FreeUnused(bytes, spare_only, &garbage);
  return true;
}

uint64_t BlockCache::FreeUnused(uint64_t bytes, bool spare_only, Garbage* garbage) noexcept {
  uint64_t freed_bytes = 0;
  for (List* list : {&tried_, &recent_, &ahead_, &proven_}) {
    if (spare_only && list == &ahead_) break;
    for (auto it = list->end(); it != list->begin() && freed_bytes < bytes;) {
      --it;
      if (it->block.use_count() > 1) continue;
      freed_bytes += it->block->taken_bytes();
      if (garbage != nullptr) Unlink(it++, *garbage);
    }
  }
  return freed_bytes;
}

void BlockCache::ForgetHeld(Garbage& garbage) noexcept {
  for (List* list : {&tried_, &recent_, &ahead_, &proven_}) {
    for (auto it = list->begin(); it != list->end();) {
      const Position slot = it++;
      if (slot->block.use_count() > 1) Unlink(slot, garbage);
    }
  }
}

void BlockCache::Clear() {
  Garbage garbage;
  const MutexLock lock(ledger_->mutex);
  for (List* list : {&tried_, &recent_, &ahead_, &proven_})
    while (!list->empty()) Unlink(list->begin(), garbage);
}

BlockCache::Stats BlockCache::stats() const {
  const MutexLock lock(ledger_->mutex);
  Stats stats = counts_;
  stats.cached_bytes = cached_bytes_;
  stats.capacity_bytes = ledger_->capacity_bytes;
  stats.peak_bytes = ledger_->peak_bytes;
  return stats;
}

}  // namespace modelstore
