#include "codec/support/thread.h"

#include <memory>
#include <utility>

#include "codec/support/guarded.h"
#include "codec/support/log.h"

namespace modelstore {
namespace {

void* RunBody(void* argument) noexcept {
  const std::unique_ptr<std::function<void()>> body(static_cast<std::function<void()>*>(argument));
  const Status status = Guarded([&] {
    (*body)();
    return OkStatus();
  });
  if (!status.ok()) {
    (void)Guarded([&] {
      Log(LogLevel::kError, "a thread ended early", {{"error", std::string(status.message())}});
      return OkStatus();
    });
  }
  return nullptr;
}

}  // namespace

Result<Thread> Thread::Start(std::function<void()> body, size_t stack_bytes) noexcept {
  return Guarded([&]() -> Result<Thread> {
    auto argument = std::make_unique<std::function<void()>>(std::move(body));
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (stack_bytes != 0) pthread_attr_setstacksize(&attributes, stack_bytes);
    Thread out;
    const int error = pthread_create(&out.thread_, &attributes, RunBody, argument.get());
    pthread_attr_destroy(&attributes);
    if (error != 0)
      return ResourceExhausted(
          "the system gives no more threads; raise the limit of processes (ulimit -u, TasksMax= of the unit, "
          "--pids-limit of the container)");
    (void)argument.release();  // the thread's
    out.joinable_ = true;
    return out;
  });
}

Thread::Thread(Thread&& other) noexcept : thread_(other.thread_), joinable_(std::exchange(other.joinable_, false)) {}

Thread& Thread::operator=(Thread&& other) noexcept {
  std::swap(thread_, other.thread_);
  std::swap(joinable_, other.joinable_);
  return *this;
}

void Thread::Join() {
  if (std::exchange(joinable_, false)) pthread_join(thread_, nullptr);
}

void Thread::Detach() {
  if (std::exchange(joinable_, false)) pthread_detach(thread_);
}

}  // namespace modelstore
