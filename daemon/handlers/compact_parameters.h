// How a compact push is asked for, of `push` and `compact` alike (layer: daemon; private to the handlers).
//
// {target_ratio?, max_drift?, or_exact?, schedule? ("uniform", "aptc", "rd"), rank?, residual_step?, bits?, sparsity?,
// group?, scale?}
#pragma once

#include <array>
#include <string_view>

#include "catalog/write/push.h"
#include "daemon/handlers/parameters.h"

namespace modelstore {

inline constexpr std::array<std::string_view, 10> kCompactKeys = {
    "target_ratio", "max_drift", "or_exact", "schedule", "rank", "residual_step", "bits", "sparsity", "group", "scale"};

// `moments` may be null. Errors: InvalidArgument.
Result<CompactOptions> ParseCompactOptions(const Parameters& parameters, const SourceTree* moments);

}  // namespace modelstore
