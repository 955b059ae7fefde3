#include "tests/fault/memory/failing_memory.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <unordered_set>

// The allocator of the C library under the names that stay when malloc is replaced.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
// Where this program's code begins and ends.
extern const char __executable_start;
extern const char etext;
}

namespace modelstore {
namespace {

constexpr size_t kPlaceFrames = 3;  // of this program: enough to tell callers of one template or helper apart
constexpr size_t kMaxNoted = 4 << 20;
constexpr size_t kMaxFrames = 48;

enum class Mode : uint8_t { kOff, kFail, kNote };

std::atomic<Mode> mode{Mode::kOff};
std::atomic<bool> has_failed{false};
std::atomic<uint64_t> counted{0};
MemoryFault fault;
pthread_t armed_by;
thread_local int spared = 0;
std::array<void*, kMaxFrames> failed_stack;
int failed_frames = 0;
uint64_t* noted = nullptr;  // places by number

struct Walk {
  uint64_t hash = 1469598103934665603ull;
  size_t left = kPlaceFrames;
};

_Unwind_Reason_Code VisitFrame(_Unwind_Context* context, void* argument) {
  auto& walk = *static_cast<Walk*>(argument);
  const auto at = static_cast<uintptr_t>(_Unwind_GetIP(context));
  const auto begin = reinterpret_cast<uintptr_t>(&__executable_start), end = reinterpret_cast<uintptr_t>(&etext);
  if (at < begin || at >= end) return _URC_NO_REASON;
  walk.hash = (walk.hash ^ (at - begin)) * 1099511628211ull;
  return --walk.left == 0 ? _URC_END_OF_STACK : _URC_NO_REASON;
}

// Whether the process ends when this allocation fails, whatever modelstore does. So does a value of the JSON library,
// in a destructor that allocates: it is that when the function of this program that is nearest on the stack, those of
// the standard library aside, is the JSON library's. So does the C library when it notes the destructor of a
// thread_local. The frames above the allocator's are of this file.
struct FatalWalk {
  bool in_caller = false;
  bool is_fatal = false;
};

_Unwind_Reason_Code VisitForFatal(_Unwind_Context* context, void* argument) {
  auto& [in_caller, is_fatal] = *static_cast<FatalWalk*>(argument);
  const auto at = static_cast<uintptr_t>(_Unwind_GetIP(context));
  Dl_info info{};
  const bool known = dladdr(reinterpret_cast<void*>(at - 1), &info) != 0 && info.dli_sname != nullptr;
  const std::string_view name = known ? info.dli_sname : "";
  if (!in_caller) {
    for (const std::string_view allocator :
         {"malloc", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign"})
      in_caller = in_caller || name == allocator;
    return _URC_NO_REASON;
  }
  is_fatal = name == "__cxa_thread_atexit_impl";
  if (is_fatal) return _URC_END_OF_STACK;
  if (at < reinterpret_cast<uintptr_t>(&__executable_start) || at >= reinterpret_cast<uintptr_t>(&etext))
    return _URC_NO_REASON;
  for (const std::string_view skipped : {"_ZSt", "_ZNSt", "_ZNKSt"})
    if (name.starts_with(skipped)) return _URC_NO_REASON;
  is_fatal = name.starts_with("_ZN8nlohmann") || name.starts_with("_ZNK8nlohmann");
  return _URC_END_OF_STACK;
}

bool IsFatal() {
  const SparedMemory of_the_walk;
  FatalWalk walk;
  _Unwind_Backtrace(VisitForFatal, &walk);
  return walk.is_fatal;
}

// Whether the allocation that is asked for is to fail.
bool Fails() {
  const Mode now = mode.load(std::memory_order_acquire);
  if (now == Mode::kOff || spared > 0) return false;
  if ((pthread_equal(pthread_self(), armed_by) != 0) != (fault.threads == Threads::kThis)) return false;
  const uint64_t number = counted.fetch_add(1, std::memory_order_relaxed);
  if (now == Mode::kNote) {
    const SparedMemory of_the_walk;
    if (number < kMaxNoted) noted[number] = 0;
    if (IsFatal()) return false;
    Walk walk;
    _Unwind_Backtrace(VisitFrame, &walk);
    if (number < kMaxNoted) noted[number] = walk.hash;
    return false;
  }
  if (number < fault.first || (fault.only_one && number > fault.first)) return false;
  if (IsFatal()) return false;
  if (!has_failed.exchange(true)) {
    const SparedMemory of_the_walk;
    failed_frames = backtrace(failed_stack.data(), static_cast<int>(failed_stack.size()));
  }
  return true;
}

void Begin(Mode next, const MemoryFault& what) {
  const SparedMemory own;
  std::array<void*, 4> warm;
  (void)backtrace(warm.data(), static_cast<int>(warm.size()));  // loads what it needs
  fault = what;
  armed_by = pthread_self();
  counted = 0;
  has_failed = false;
  mode.store(next, std::memory_order_release);
}

}  // namespace

void ArmMemory(const MemoryFault& what) { Begin(Mode::kFail, what); }
void DisarmMemory() { mode.store(Mode::kOff, std::memory_order_release); }
uint64_t CountedAllocations() { return counted; }
bool MemoryHasFailed() { return has_failed; }

void StartNoting(Threads threads) {
  const SparedMemory own;
  noted = static_cast<uint64_t*>(__libc_malloc(kMaxNoted * sizeof(uint64_t)));
  Begin(Mode::kNote, {.threads = threads});
}

std::vector<uint64_t> StopNoting() {
  DisarmMemory();
  const SparedMemory own;
  std::vector<uint64_t> first;
  std::unordered_set<uint64_t> known;
  for (uint64_t i = 0; i < std::min<uint64_t>(counted, kMaxNoted); ++i)
    if (noted[i] != 0 && known.insert(noted[i]).second) first.push_back(i);
  free(noted);
  noted = nullptr;
  return first;
}

void PrintFailedPlace() {
  const SparedMemory own;
  backtrace_symbols_fd(failed_stack.data(), failed_frames, STDERR_FILENO);
}

SparedMemory::SparedMemory() { ++spared; }
SparedMemory::~SparedMemory() { --spared; }
UnsparedMemory::UnsparedMemory() : spared_before_(spared) { spared = 0; }
UnsparedMemory::~UnsparedMemory() { spared = spared_before_; }

}  // namespace modelstore

// What failed is told by errno, too.
#define MS_OR_FAIL(call)     \
  if (modelstore::Fails()) { \
    errno = ENOMEM;          \
    return nullptr;          \
  }                          \
  return call

extern "C" {
void* malloc(size_t bytes) { MS_OR_FAIL(__libc_malloc(bytes)); }
void* calloc(size_t count, size_t bytes) { MS_OR_FAIL(__libc_calloc(count, bytes)); }
void* realloc(void* old, size_t bytes) { MS_OR_FAIL(__libc_realloc(old, bytes)); }
void* memalign(size_t alignment, size_t bytes) { MS_OR_FAIL(__libc_memalign(alignment, bytes)); }
void* aligned_alloc(size_t alignment, size_t bytes) { MS_OR_FAIL(__libc_memalign(alignment, bytes)); }
int posix_memalign(void** out, size_t alignment, size_t bytes) {
  if (modelstore::Fails()) return ENOMEM;
  *out = __libc_memalign(alignment, bytes);
  return *out == nullptr ? ENOMEM : 0;
}
}
