#include "daemon/handlers/compact_parameters.h"

#include <cmath>
#include <limits>
#include <string>

namespace modelstore {
namespace {

// A number of [low, high]; a whole one when `step` is 1.
Result<std::optional<double>> NumberIn(const Parameters& parameters, const char* key, double low, double high,
                                       double step = 0) {
  ASSIGN_OR_RETURN(const std::optional<double> value, parameters.Number(key));
  if (!value) return value;
  const bool fits = *value >= low && *value <= high && (step == 0 || std::floor(*value) == *value);
  if (fits) return value;
  const auto text = [](double number) {
    std::string out = std::to_string(number);
    out.erase(out.find_last_not_of('0') + 1);
    if (out.ends_with('.')) out.pop_back();
    return out;
  };
  return InvalidArgument(std::string(key) + " " + text(*value) + ": expected " + (step == 0 ? "" : "a whole number ") +
                         "from " + text(low) + " to " + text(high));
}

}  // namespace

Result<CompactOptions> ParseCompactOptions(const Parameters& parameters, const SourceTree* moments) {
  CompactOptions options;
  options.moments = moments;
  ASSIGN_OR_RETURN(options.target_ratio, NumberIn(parameters, "target_ratio", 1, 1e6));
  ASSIGN_OR_RETURN(options.max_drift, NumberIn(parameters, "max_drift", 0, 1));
  ASSIGN_OR_RETURN(options.or_exact, parameters.Bool("or_exact", false));
  ASSIGN_OR_RETURN(options.scale, NumberIn(parameters, "scale", 0.1, 10));
  ASSIGN_OR_RETURN(const std::string schedule, parameters.String("schedule", "rd"));
  if (schedule == "uniform") {
    options.schedule = CompactSchedule::kUniform;
  } else if (schedule == "aptc") {
    options.schedule = CompactSchedule::kAptc;
  } else if (schedule != "rd") {
    return InvalidArgument("schedule '" + schedule + "': expected uniform, aptc or rd");
  }
  ASSIGN_OR_RETURN(const std::optional<double> rank, NumberIn(parameters, "rank", 0, kMaxCompactRank, 1));
  ASSIGN_OR_RETURN(const std::optional<double> step, NumberIn(parameters, "residual_step", 0.1, 100));
  ASSIGN_OR_RETURN(const std::optional<double> bits, NumberIn(parameters, "bits", 1, 7, 1));
  ASSIGN_OR_RETURN(const std::optional<double> sparsity, NumberIn(parameters, "sparsity", 0, 0.9999));
  ASSIGN_OR_RETURN(const std::optional<double> group, NumberIn(parameters, "group", 16, 1 << 30, 1));
  if ((sparsity || group) && !bits)
    return InvalidArgument("sparsity and group say what is kept of bits: give bits too");
  if (bits && (rank || step)) return InvalidArgument("bits and sparsity go without rank and residual_step");
  const bool has_budget = options.target_ratio || options.max_drift;
  if ((rank || step) && has_budget)
    return InvalidArgument("a rank or residual_step leaves a target_ratio or max_drift nothing to choose");
  if (sparsity && has_budget) return InvalidArgument("a sparsity leaves a target_ratio or max_drift nothing to choose");
  if (rank || step || bits) {
    CompactChoice& choice = options.choice.emplace();
    choice.rank = static_cast<uint32_t>(rank.value_or(0));
    choice.residual_step = static_cast<float>(step.value_or(0));
    choice.bits = static_cast<uint32_t>(bits.value_or(0));
    choice.sparsity = static_cast<float>(sparsity.value_or(0));
    choice.group_elems = static_cast<uint64_t>(group.value_or(0));
    choice.scale = static_cast<float>(options.scale.value_or(bits ? 1 : 0));
  }
  return options;
}

}  // namespace modelstore
