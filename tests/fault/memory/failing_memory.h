// An allocator that fails on demand (layer: tests). It takes malloc's place in the whole program, and thereby that of
// operator new and of the libraries.
#pragma once

#include <cstdint>
#include <vector>

namespace modelstore {

// Whose allocations count and fail.
enum class Threads : uint8_t { kThis, kOthers };

struct MemoryFault {
  Threads threads = Threads::kThis;  // the thread that arms, or all others
  uint64_t first = 0;                // number of the first allocation that fails, counted from arming
  bool only_one = true;              // that one alone; false: and all that follow
};

// From now on allocations fail as `fault` says.
void ArmMemory(const MemoryFault& fault);
void DisarmMemory();
// How many allocations counted since the last arming; whether one failed.
uint64_t CountedAllocations();
bool MemoryHasFailed();

// Runs with every allocation noted by where it comes from; nothing fails.
void StartNoting(Threads threads);
// The number of the first allocation of each place. A place is the functions of this program that are nearest to the
// allocation on the stack.
std::vector<uint64_t> StopNoting();
// Prints the stack of the allocation that failed, to stderr.
void PrintFailedPlace();

// While one lives, its thread's allocations neither count nor fail: those of the test, and of what stands in for a
// library.
class SparedMemory {
 public:
  SparedMemory();
  ~SparedMemory();
  SparedMemory(const SparedMemory&) = delete;
  SparedMemory& operator=(const SparedMemory&) = delete;
};
// The opposite, within one of those: for calling back.
class UnsparedMemory {
 public:
  UnsparedMemory();
  ~UnsparedMemory();
  UnsparedMemory(const UnsparedMemory&) = delete;
  UnsparedMemory& operator=(const UnsparedMemory&) = delete;

 private:
  const int spared_before_;
};

}  // namespace modelstore
