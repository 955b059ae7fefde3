#include "daemon/service/small_thread.h"

#include <exception>
#include <memory>
#include <utility>

#include "codec/support/log.h"

namespace modelstore {
namespace {

void* RunBody(void* argument) {
  const std::unique_ptr<std::function<void()>> body(static_cast<std::function<void()>*>(argument));
  try {
    (*body)();
  } catch (const std::exception& e) {  // of one client; the others go on
    Log(LogLevel::kError, "a thread of the daemon ended early", {{"error", e.what()}});
  }
  return nullptr;
}

}  // namespace

Result<SmallThread> SmallThread::Start(size_t stack_bytes, std::function<void()> body) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_bytes);
  auto argument = std::make_unique<std::function<void()>>(std::move(body));
  SmallThread out;
  const int error = pthread_create(&out.thread_, &attributes, RunBody, argument.get());
  pthread_attr_destroy(&attributes);
  if (error != 0) return ResourceExhausted("the system gives no more threads");
  (void)argument.release();  // the thread's
  out.joinable_ = true;
  return out;
}

SmallThread::SmallThread(SmallThread&& other) noexcept
    : thread_(other.thread_), joinable_(std::exchange(other.joinable_, false)) {}

SmallThread& SmallThread::operator=(SmallThread&& other) noexcept {
  std::swap(thread_, other.thread_);
  std::swap(joinable_, other.joinable_);
  return *this;
}

void SmallThread::Join() {
  if (std::exchange(joinable_, false)) pthread_join(thread_, nullptr);
}

void SmallThread::Detach() {
  if (std::exchange(joinable_, false)) pthread_detach(thread_);
}

}  // namespace modelstore
