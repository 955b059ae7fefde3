// A thread with a stack of a chosen size (layer: daemon/service): hundreds of clients must not cost 8 MiB each.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <functional>

#include "codec/support/status.h"

namespace modelstore {

// Joined when destroyed, unless detached.
class SmallThread {
 public:
  // Errors: ResourceExhausted.
  static Result<SmallThread> Start(size_t stack_bytes, std::function<void()> body);
  SmallThread() = default;
  SmallThread(SmallThread&& other) noexcept;
  SmallThread& operator=(SmallThread&& other) noexcept;
  ~SmallThread() { Join(); }

  void Join();
  void Detach();

 private:
  pthread_t thread_{};
  bool joinable_ = false;
};

}  // namespace modelstore
