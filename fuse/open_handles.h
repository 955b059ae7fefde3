// OpenHandles: what the kernel knows by a number until it releases it (layer: fuse; no libfuse here).
//
// The kernel alone cannot own a handle: when its connection ends (an abort, an unmount that overtakes the releases of
// files just closed) no release comes for what was open. Thread-safe. A number stays valid until it is taken back.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "codec/support/mutex.h"

namespace modelstore {

template <typename Handle>
class OpenHandles {
 public:
  // The handle's number: its address.
  uint64_t Add(std::unique_ptr<Handle> handle) {
    const auto number = reinterpret_cast<uintptr_t>(handle.get());
    const MutexLock lock(mutex_);
    handles_.emplace(number, std::move(handle));
    return number;
  }

  // Of a number that is not taken back meanwhile.
  static Handle& At(uint64_t number) { return *reinterpret_cast<Handle*>(static_cast<uintptr_t>(number)); }

  // Null when the number is not, or no longer, known.
  std::unique_ptr<Handle> Take(uint64_t number) {
    const MutexLock lock(mutex_);
    auto node = handles_.extract(number);
    return node.empty() ? nullptr : std::move(node.mapped());
  }

  std::vector<std::unique_ptr<Handle>> TakeAll() {
    std::vector<std::unique_ptr<Handle>> all;
    const MutexLock lock(mutex_);
    all.reserve(handles_.size());
    for (auto& [number, handle] : handles_) all.push_back(std::move(handle));
    handles_.clear();
    return all;
  }

 private:
  Mutex mutex_;
  std::unordered_map<uint64_t, std::unique_ptr<Handle>> handles_ MS_GUARDED_BY(mutex_);
};

}  // namespace modelstore
