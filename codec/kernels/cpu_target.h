// Which instruction set the kernels use (layer: codec/kernels). Chosen once at start from what the CPU has; the
// environment variable MODELSTORE_CPU (baseline, avx2, avx512) or ForceCpuTarget lowers it. All give the same bits.
#pragma once

#include <string_view>
#include <vector>

#include "codec/support/status.h"

namespace modelstore {

enum class CpuTarget : unsigned char { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

std::string_view CpuTargetName(CpuTarget target);
// What this CPU can run, slowest first; kBaseline is always there.
std::vector<CpuTarget> AvailableCpuTargets();
// The target in force.
CpuTarget CurrentCpuTarget();
// Tests and benchmarks: precondition: `target` is available.
void ForceCpuTarget(CpuTarget target);
// Errors: InvalidArgument when MODELSTORE_CPU names no target or one that this CPU lacks (the best one is then in
// force).
Status CheckCpuEnvironment();

}  // namespace modelstore
