#include "codec/kernels/cpu_target.h"

#include <atomic>
#include <cstdlib>
#include <string>

namespace modelstore {
namespace {

constexpr std::string_view kNames[] = {"baseline", "avx2", "avx512"};

CpuTarget BestTarget() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return CpuTarget::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuTarget::kAvx2;
#endif
  return CpuTarget::kBaseline;
}

struct Choice {
  CpuTarget target = BestTarget();
  Status status;
};

const Choice& FromEnvironment() {
  static const Choice choice = [] {
    Choice c;
    const char* wish = std::getenv("MODELSTORE_CPU");
    if (wish == nullptr || *wish == '\0') return c;
    for (unsigned i = 0; i <= static_cast<unsigned>(c.target); ++i) {
      if (kNames[i] == wish) {
        c.target = static_cast<CpuTarget>(i);
        return c;
      }
    }
    c.status =
        InvalidArgument("MODELSTORE_CPU=" + std::string(wish) + ": expected baseline, avx2 or avx512, and at most " +
                        std::string(kNames[static_cast<unsigned>(c.target)]) + " on this CPU");
    return c;
  }();
  return choice;
}

std::atomic<int> forced{-1};

}  // namespace

std::string_view CpuTargetName(CpuTarget target) { return kNames[static_cast<unsigned>(target)]; }

std::vector<CpuTarget> AvailableCpuTargets() {
  std::vector<CpuTarget> targets;
  for (unsigned i = 0; i <= static_cast<unsigned>(BestTarget()); ++i) targets.push_back(static_cast<CpuTarget>(i));
  return targets;
}

CpuTarget CurrentCpuTarget() {
  const int f = forced.load(std::memory_order_relaxed);
  return f >= 0 ? static_cast<CpuTarget>(f) : FromEnvironment().target;
}

void ForceCpuTarget(CpuTarget target) { forced.store(static_cast<int>(target), std::memory_order_relaxed); }

Status CheckCpuEnvironment() { return FromEnvironment().status; }

}  // namespace modelstore
