// Mutex, SharedMutex, their locks and CondVar: those of the standard library, with annotations that let clang prove
// that guarded data is only touched under its mutex (layer: codec/support).
//
// A member says by MS_GUARDED_BY which mutex guards it, a function by MS_REQUIRES which mutex its caller holds. Clang's
// -Wthread-safety (lint.thread_safety) reads that; GCC compiles the same code without the annotations. The analysis
// does not look into a lambda's caller: a condition is waited for in a `while` loop, not by a predicate.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>

#if defined(__clang__)
#define MS_THREAD_ANNOTATION(attribute) __attribute__((attribute))
#else
#define MS_THREAD_ANNOTATION(attribute)
#endif

// Of types: something that is held; something that holds it from its constructor to its destructor.
#define MS_CAPABILITY(name) MS_THREAD_ANNOTATION(capability(name))
#define MS_SCOPED_CAPABILITY MS_THREAD_ANNOTATION(scoped_lockable)

// Of members: the mutex that is held while the member (PT: what the member points at) is read or written.
#define MS_GUARDED_BY(mutex) MS_THREAD_ANNOTATION(guarded_by(mutex))
#define MS_PT_GUARDED_BY(mutex) MS_THREAD_ANNOTATION(pt_guarded_by(mutex))

// Of mutexes: which other ones are taken while this one is held, and while which ones this one is taken.
#define MS_ACQUIRED_BEFORE(...) MS_THREAD_ANNOTATION(acquired_before(__VA_ARGS__))
#define MS_ACQUIRED_AFTER(...) MS_THREAD_ANNOTATION(acquired_after(__VA_ARGS__))

// Of functions: what the caller holds, what the caller does not hold, what the function takes and gives back.
#define MS_REQUIRES(...) MS_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define MS_REQUIRES_SHARED(...) MS_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define MS_EXCLUDES(...) MS_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define MS_ACQUIRE(...) MS_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define MS_ACQUIRE_SHARED(...) MS_THREAD_ANNOTATION(acquire_shared_capability(__VA_ARGS__))
#define MS_TRY_ACQUIRE(...) MS_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define MS_RELEASE(...) MS_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define MS_RELEASE_SHARED(...) MS_THREAD_ANNOTATION(release_shared_capability(__VA_ARGS__))
#define MS_RETURN_CAPABILITY(mutex) MS_THREAD_ANNOTATION(lock_returned(mutex))

// Of functions that no other thread can call at the same time, for a reason that a comment beside it gives.
#define MS_NO_THREAD_SAFETY_ANALYSIS MS_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace modelstore {

class MS_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() MS_ACQUIRE() { mutex_.lock(); }
  [[nodiscard]] bool TryLock() MS_TRY_ACQUIRE(true) { return mutex_.try_lock(); }
  void Unlock() MS_RELEASE() { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Held by one writer or by any number of readers.
class MS_CAPABILITY("shared mutex") SharedMutex {
 public:
  SharedMutex() = default;
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void Lock() MS_ACQUIRE() { mutex_.lock(); }
  void Unlock() MS_RELEASE() { mutex_.unlock(); }
  void LockShared() MS_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void UnlockShared() MS_RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

// Holds a Mutex for its life, but for the time between Unlock and Lock.
class MS_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) MS_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  // The mutex is held already, from TryLock.
  MutexLock(Mutex& mutex, std::adopt_lock_t) MS_REQUIRES(mutex) : mutex_(mutex) {}
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() MS_RELEASE() {
    if (is_held_) mutex_.Unlock();
  }

  void Unlock() MS_RELEASE() {
    mutex_.Unlock();
    is_held_ = false;
  }
  void Lock() MS_ACQUIRE() {
    mutex_.Lock();
    is_held_ = true;
  }

 private:
  Mutex& mutex_;
  bool is_held_ = true;
};

class MS_SCOPED_CAPABILITY WriterLock {
 public:
  explicit WriterLock(SharedMutex& mutex) MS_ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;
  ~WriterLock() MS_RELEASE() { mutex_.Unlock(); }

 private:
  SharedMutex& mutex_;
};

class MS_SCOPED_CAPABILITY ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mutex) MS_ACQUIRE_SHARED(mutex) : mutex_(mutex) { mutex_.LockShared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;
  ~ReaderLock() MS_RELEASE() { mutex_.UnlockShared(); }

 private:
  SharedMutex& mutex_;
};

// A condition of what a mutex guards. A wait gives the mutex back meanwhile and may end without a reason:
//   while (!ready_) changed_.Wait(mutex_);
class CondVar {
 public:
  void Wait(Mutex& mutex) MS_REQUIRES(mutex) {
    Held held(mutex);
    condition_.wait(held.lock);
  }
  // False once `deadline` has passed.
  template <typename Clock, typename Duration>
  bool WaitUntil(Mutex& mutex, const std::chrono::time_point<Clock, Duration>& deadline) MS_REQUIRES(mutex) {
    Held held(mutex);
    return condition_.wait_until(held.lock, deadline) == std::cv_status::no_timeout;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  // A mutex that the caller holds and keeps, as the standard's type of lock.
  struct Held {
    explicit Held(Mutex& mutex) : lock(mutex.mutex_, std::adopt_lock) {}
    ~Held() { lock.release(); }
    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable condition_;
};

}  // namespace modelstore
