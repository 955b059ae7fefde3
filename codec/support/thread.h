// Thread: a thread that the system may refuse (layer: codec/support).
//
// std::thread throws where a container's limit of processes is reached, and ends the program when it is destroyed
// before somebody joined it, as by that exception. This one answers with a Status and joins in its destructor.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <functional>

#include "codec/support/status.h"

namespace modelstore {

// Joined when destroyed, unless detached. Not thread-safe: one owner.
class Thread {
 public:
  // Runs `body`, guarded (codec/support/guarded.h); what it throws is logged. `stack_bytes` 0: the system's default.
  // Errors: ResourceExhausted.
  static Result<Thread> Start(std::function<void()> body, size_t stack_bytes = 0) noexcept;
  Thread() = default;
  Thread(Thread&& other) noexcept;
  Thread& operator=(Thread&& other) noexcept;
  ~Thread() { Join(); }

  bool joinable() const { return joinable_; }
  // Precondition: joinable().
  pthread_t handle() const { return thread_; }
  void Join();
  void Detach();

 private:
  pthread_t thread_{};
  bool joinable_ = false;
};

}  // namespace modelstore
